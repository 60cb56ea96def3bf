package cloud_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
)

// Jobs that ask at once, again and again, keep their connections.
func TestIdleConnections(t *testing.T) {
	const jobs = 40
	var opened atomic.Int64
	var arrived sync.WaitGroup // all requests of a round are under way together
	f := &fake{answer: func(asked) answer {
		arrived.Done()
		arrived.Wait()
		return answer{body: `{"KeyMetadata":{"KeyId":"` + keyID + `","Arn":"` + keyARN + `"}}`}
	}}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	f.Start()
	t.Cleanup(f.Close)
	k := openKMS(t, f.settings())
	for range 5 {
		arrived.Add(jobs)
		var round sync.WaitGroup
		for range jobs {
			round.Go(func() {
				if _, err := k.DescribeKey(t.Context(), keyID); err != nil {
					t.Error(err)
				}
			})
		}
		round.Wait()
	}
	if n := opened.Load(); n > jobs*3/2 {
		t.Errorf("%d connections were opened for %d requests at a time", n, jobs)
	}
}
