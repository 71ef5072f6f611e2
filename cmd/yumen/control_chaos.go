//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/yumen-zt/yumen/control"
)

// controlChaosCmd returns `yumen control chaos` and its verbs.
func controlChaosCmd(t *controlTarget) *cobra.Command {
	cmd := &cobra.Command{
		Use: "chaos", Short: "Make a control center misbehave on purpose, for drills 故障演练",
		Long: `Only for tests and drills: the control center must have been started with --allow-chaos.
A plan ends by itself after --until. Faults: ` + strings.Join(control.Faults, " ") + `
仅用于测试和演练：控制中心须以 --allow-chaos 启动；演练到时自动结束。`,
	}
	cmd.AddCommand(controlChaosSetCmd(t),
		controlChaosVerb(t, "show", "Show the plan and how often each rule struck 查看", "GET"),
		controlChaosVerb(t, "off", "End the plan 结束演练", "DELETE"))
	return cmd
}

func controlChaosSetCmd(t *controlTarget) *cobra.Command {
	var format, script string
	var r control.ChaosRule
	var last, until time.Duration
	var seed uint64
	cmd := &cobra.Command{
		Use: "set [FAULT]", Short: "Begin a plan: one fault, or a script of steps 开始演练", Args: cobra.MaximumNArgs(1),
		Example: `  yumen control chaos set error --match T11 --probability 0.5 --until 5m
  yumen control chaos set stall --match /ztna/v1/gateway/events --for 30s --count 1
  echo '{"steps":[{"for":"1m","rules":[{"fault":"drop"}]},{"for":"1m","rules":[]}]}' | yumen control chaos set --script -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var p control.ChaosPlan
			switch {
			case len(args) == 1 && script == "":
				r.Fault, r.For = args[0], control.Duration(last)
				p = control.ChaosPlan{Seed: seed, Until: control.Duration(until), Steps: []control.ChaosStep{{Rules: []control.ChaosRule{r}}}}
			case len(args) == 0 && script != "":
				in := cmd.InOrStdin()
				if script != "-" {
					f, err := os.Open(script)
					if err != nil {
						return fmt.Errorf("read script: %w", err)
					}
					defer f.Close()
					in = f
				}
				d := json.NewDecoder(in)
				d.DisallowUnknownFields()
				if err := d.Decode(&p); err != nil {
					return &usageError{fmt.Errorf("read script: %w", err)}
				}
			default:
				return &usageError{errors.New("give one fault, or --script FILE")}
			}
			var out control.ChaosState
			if err := t.do(cmd.Context(), "PUT", "/v1/chaos", &p, &out); err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), format, out, func(w io.Writer) { printChaos(w, &out) })
		},
	}
	cmd.Flags().StringVar(&r.Match, "match", "", "table (T11, X.ack, events) or beginning of a path; default: everything")
	cmd.Flags().Float64Var(&r.Probability, "probability", 0, "of each strike, up to 1 (default 1)")
	cmd.Flags().IntVar(&r.Count, "count", 0, "end after so many strikes (default: none)")
	cmd.Flags().DurationVar(&last, "for", 0, "length of a delay, stall (default 30s), reorder (default 1s) or clock skew (may be negative)")
	cmd.Flags().DurationVar(&until, "until", 0, "end of the plan from now (default 10m, most 24h)")
	cmd.Flags().Uint64Var(&seed, "seed", 0, "of the random choices")
	cmd.Flags().StringVar(&script, "script", "", "JSON file with steps, - for standard input")
	outputFlag(cmd, &format)
	return cmd
}

func controlChaosVerb(t *controlTarget, use, short, method string) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out control.ChaosState
			if err := t.do(cmd.Context(), method, "/v1/chaos", nil, &out); err != nil {
				return err
			}
			return output(cmd.OutOrStdout(), format, out, func(w io.Writer) { printChaos(w, &out) })
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

func printChaos(w io.Writer, s *control.ChaosState) {
	switch {
	case !s.Allowed:
		fmt.Fprintln(w, "chaos is not allowed here (start the control center with --allow-chaos) 未允许故障演练")
		return
	case s.Plan == nil:
		fmt.Fprintln(w, "off 未演练")
		return
	}
	fmt.Fprintf(w, "on until %s, step %d of %d 演练中\n", s.Ends.Local().Format(time.DateTime), s.Step+1, len(s.Plan.Steps))
	controlTable(w, "STEP LASTS FAULT MATCH PROBABILITY COUNT FOR STRUCK", func(line func(...any)) {
		for i, st := range s.Plan.Steps {
			lasts := "to the end"
			if st.For > 0 {
				lasts = time.Duration(st.For).String()
			}
			if len(st.Rules) == 0 {
				line(i+1, lasts, "none", "", "", "", "", "")
			}
			for _, r := range st.Rules {
				line(i+1, lasts, r.Fault, r.Match, r.Probability, r.Count, time.Duration(r.For).String(), r.Hits)
			}
		}
	})
}
