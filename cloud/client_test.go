package cloud_test

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// An eagerConn is a connection whose peer answers before the writer of the request
// has gone on: Write of the body returns when the answer is being read.
type eagerConn struct {
	net.Conn
	reads    int
	reading  chan struct{} // closed when more than the head of the answer is wanted
	closed   chan struct{}
	closeOne sync.Once
}

func (c *eagerConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if bytes.HasSuffix(p, []byte("}")) {
		<-c.reading
	}
	return n, err
}

func (c *eagerConn) Read(p []byte) (int, error) {
	c.reads++
	if c.reads == 2 {
		close(c.reading)
		select { // the writer has time to do harm
		case <-c.closed:
		case <-time.After(200 * time.Millisecond):
		}
	}
	return c.Conn.Read(p)
}

func (c *eagerConn) Close() error {
	c.closeOne.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// An answer may come before the goroutine that wrote the request is done with it;
// its connection must live until the answer has been read.
func TestAnswerBeforeTheWriterIsDone(t *testing.T) {
	f := newFake(t, func(asked) answer {
		return answer{body: `{"Policy":"` + strings.Repeat("x", 30_000) + `"}`}
	})
	c := open(t, f.settings())
	err := c.Dial(func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return &eagerConn{Conn: conn, reading: make(chan struct{}), closed: make(chan struct{})}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	k, err := c.KMS("prod", region)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := k.KeyPolicy(t.Context(), keyID)
	if err != nil || len(policy) != 30_000 {
		t.Errorf("%d bytes of policy, %v", len(policy), err)
	}
	if n := f.count("GetKeyPolicy"); n != 1 {
		t.Errorf("asked %d times", n)
	}
}
