package conformance_test

import (
	"net"
	"net/http"
	"os/exec"
	"testing"
	"time"

	"byokd/cloud/conformance"
)

// motoSteps are those that moto can do: its KMS knows nothing of imports.
var motoSteps = []string{"account", "event bus", "an event bus that is not there", "put events"}

// TestMoto runs EventBridge's and STS's steps against moto, an emulator that
// nobody of byokd wrote, where Python has it.
func TestMoto(t *testing.T) {
	if exec.CommandContext(t.Context(), "python3", "-c", "import moto.server").Run() != nil {
		t.Log("NOT RUN: there is no moto here (python3 -m pip install 'moto[server]')")
		return
	}
	// moto cannot say on which port it listens, so one is chosen for it.
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	moto := exec.CommandContext(t.Context(), "python3", "-m", "moto.server", "-H", "127.0.0.1", "-p", port)
	if err := moto.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- moto.Wait() }()
	t.Cleanup(func() {
		_ = moto.Process.Kill() // it may have ended, which is not waited for
		<-ended
	})
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	for {
		response, err := client.Get("http://" + address + "/moto-api/")
		if err == nil {
			response.Body.Close()
			break
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("moto ended: %v", err)
		case <-t.Context().Done():
			t.Fatal("moto does not answer")
		case <-time.After(50 * time.Millisecond):
		}
	}
	target := at("http://" + address)
	target.NotRun = make(map[string]string)
	for _, name := range conformance.Steps() {
		target.NotRun[name] = "moto cannot do it"
	}
	for _, name := range motoSteps {
		delete(target.NotRun, name)
	}
	t.Logf("not run: the %d steps of KMS, which cannot import at moto", len(target.NotRun))
	outcomes := make(map[string]conformance.Result)
	if err := conformance.Run(t.Context(), target, func(r conformance.Result) { outcomes[r.Step] = r }); err != nil {
		t.Error(err)
	}
	for _, name := range motoSteps {
		if r := outcomes[name]; r.Outcome != conformance.Passed {
			t.Errorf("%s: %s %s", name, r.Outcome, r.Why)
		}
	}
}
