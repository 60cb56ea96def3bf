package control

import (
	"context"
	"net/http"
)

// Handler is the handler that Serve serves, for tests without a connection.
func (s *Server) Handler(stop context.Context) http.Handler { return s.handler(stop) }
