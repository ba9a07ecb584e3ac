package agent

import "net/http"

type fileStore struct{}

func (a *Agent) fileRoutes(m *http.ServeMux) {}
