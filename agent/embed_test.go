package agent_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"

	"github.com/yumen-zt/yumen/agent"
)

// A program carries the agent of an enrolled device in itself: without local
// faces, its own HTTP client reaches the applications that were granted.
func ExampleAgent_Dial() {
	cfg, err := agent.Load("/home/user/.yumen/agent.yaml") // as `yumen enroll` wrote it
	if err != nil {
		log.Fatal(err)
	}
	cfg.SOCKS5, cfg.HTTPConnect, cfg.Forwards = nil, nil, []agent.Forward{} // no faces
	a, err := agent.New(cfg)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	// Somebody has signed in by `yumen agent login`, or the program does so by
	// a.Login.
	client := &http.Client{Transport: &http.Transport{DialContext: a.Dial}}
	res, err := client.Get("http://wiki.corp:80/")
	if err != nil {
		code, words := agent.ExplainError(err)
		fmt.Println(code, words.EN, words.ZH)
	} else {
		res.Body.Close()
	}
	stop()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}
