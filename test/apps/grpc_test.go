package apps

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/test/testbed"
)

// gRPC's own interoperability client and server, at the version that
// peers/go.mod names: calls of all four kinds, metadata and status in trailers,
// deadlines and cancellation. The user's right ends during the last call.
func TestGRPCInteroperability(t *testing.T) {
	long(t, "it builds gRPC")
	w := site(t)
	client, server := buildGRPC(t, w.dir)
	testbed.RunOther(t, "grpc server", server, "--port", strconv.Itoa(w.grpcPort))
	testbed.Eventually(t, 10*time.Second, "the gRPC server listens", func() bool {
		c, err := net.DialTimeout("tcp", testbed.Loopback(false, w.grpcPort), time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	u, cookies := w.user(t, "grpc", grpcID, "grpc")
	call := func(test string) (string, error) {
		return peer(t, time.Minute, []string{"GRPC_GO_LOG_SEVERITY_LEVEL=info"}, client, "--test_case", test, "--server_host", "127.0.0.1", "--server_port", strconv.Itoa(w.Port),
			"--use_tls", "--use_test_ca", "--ca_file", w.CAFile, "--server_host_override", "grpc."+testbed.Domain, "--additional_metadata", "cookie:"+strings.ReplaceAll(cookies, "; ", ";cookie:"))
	}
	for _, test := range []string{
		"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
		"custom_metadata", "special_status_message", "status_code_and_message", "unimplemented_method", "unimplemented_service",
		"timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response",
	} {
		t.Run(test, func(t *testing.T) {
			if out, err := call(test); err != nil || !strings.Contains(out, "done") && !strings.Contains(out, "passed") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	w.GatewayAudit.Await(t, 10, "calls", func(r *audit.Record) bool {
		return r.Kind == audit.End && r.UserID == u.ID && r.Method == "POST" && strings.HasPrefix(r.Path, "/grpc.testing.TestService/")
	})

	w.Lock(u, "")
	if out, err := call("empty_unary"); err == nil || !strings.Contains(out, "PermissionDenied") && !strings.Contains(out, "Unauthenticated") {
		t.Errorf("a locked user: %v: %s", err, out)
	}
}

func buildGRPC(t *testing.T, dir string) (client, server string) {
	t.Helper()
	for name, path := range map[string]*string{"client": &client, "server": &server} {
		*path = filepath.Join(dir, "grpc-"+name)
		cmd := exec.CommandContext(within(t, 5*time.Minute), "go", "build", "-o", *path, "google.golang.org/grpc/interop/"+name)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatal(fmt.Errorf("build %s: %w: %s", name, err, out))
		}
	}
	return client, server
}
