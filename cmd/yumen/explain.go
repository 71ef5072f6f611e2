package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// explainCmd tells what a code means, in both languages.
func explainCmd() *cobra.Command {
	var all bool
	var format string
	cmd := &cobra.Command{
		Use: "explain CODE", Short: "Say what a reason (YM-303) or an alert (2.001) means, and what to do",
		Example: "  yumen explain YM-303\n  yumen explain 2.001\n  yumen explain --all -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			var found []explained
			switch {
			case all && len(args) == 0:
				for _, r := range reason.All() {
					found = append(found, explainReason(r))
				}
				for _, e := range alert.Catalogue() {
					found = append(found, explainAlert(e))
				}
			case len(args) == 1 && !all:
				if e, ok := alert.Lookup(alert.Code(args[0])); ok {
					found = append(found, explainAlert(e))
					break
				}
				r, err := reason.Parse(args[0])
				if err != nil {
					return err
				}
				found = append(found, explainReason(r))
			default:
				return &usageError{errors.New("explain takes one code, or --all")}
			}
			return output(cmd.OutOrStdout(), format, found, func(w io.Writer) {
				for _, e := range found {
					fmt.Fprintf(w, "%s %s\n  %s %s\n  %s %s\n", e.Code, e.Name, e.English, e.Advice, e.Chinese, e.AdviceChinese)
				}
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "list every reason and alert")
	outputFlag(cmd, &format)
	return cmd
}

type explained struct {
	Code          string `json:"code"`
	Name          string `json:"name"`
	English       string `json:"en"`
	Chinese       string `json:"zh"`
	Advice        string `json:"advice_en,omitempty"`
	AdviceChinese string `json:"advice_zh,omitempty"`
	Status        int    `json:"http_status,omitempty"`
	Level         int    `json:"alert_level,omitempty"`
}

func explainReason(r reason.Reason) explained {
	return explained{
		Code: r.Code(), Name: r.String(), English: r.Text(reason.English), Chinese: r.Text(reason.Chinese),
		Advice: r.Advice(reason.English), AdviceChinese: r.Advice(reason.Chinese), Status: r.Status(),
	}
}

func explainAlert(e alert.Entry) explained {
	return explained{
		Code: string(e.Code), Name: "alert", English: e.EN, Chinese: e.ZH, Advice: e.AdviceEN, AdviceChinese: e.AdviceZH, Level: int(e.Level),
	}
}

// outputFlag adds -o, which every read verb has.
func outputFlag(cmd *cobra.Command, format *string) {
	*format = "text"
	cmd.Flags().VarP((*outputFormat)(format), "output", "o", "text or json")
}

// outputFormat is refused before a verb does anything.
type outputFormat string

func (f *outputFormat) String() string { return string(*f) }
func (f *outputFormat) Type() string   { return "format" }

func (f *outputFormat) Set(s string) error {
	if s != "text" && s != "json" {
		return errors.New("text or json")
	}
	*f = outputFormat(s)
	return nil
}

// output prints v as JSON, or as text prints it.
func output(w io.Writer, format string, v any, text func(io.Writer)) error {
	switch format {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "text":
		text(w)
		return nil
	}
	return &usageError{fmt.Errorf("output %q: text or json", format)}
}
