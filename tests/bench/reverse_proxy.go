// The proxy one would write in Go: httputil.ReverseProxy before the Engine's socket, mutual TLS, and a list of
// allowed paths by method.
//
//	reverse_proxy PORT ENGINE_SOCKET CHAIN KEY CLIENT_CA
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"regexp"
)

var allowed = map[string]*regexp.Regexp{
	"GET":  regexp.MustCompile(`^(/v[\d.]+)?/(_ping|version|info|events|(containers|images|exec)(/.*)?)$`),
	"HEAD": regexp.MustCompile(`^(/v[\d.]+)?/_ping$`),
	"POST": regexp.MustCompile(`^(/v[\d.]+)?/(images/load|containers/(create|[a-zA-Z0-9_.-]+/(start|resize|exec|attach))|exec/[a-f0-9]+/(start|resize))$`),
}

func main() {
	port, engine, chain, key, clients := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	pem, err := os.ReadFile(clients)
	trusted := x509.NewCertPool()
	if err != nil || !trusted.AppendCertsFromPEM(pem) {
		log.Fatalf("%s: no certificates: %v", clients, err)
	}
	proxy := &httputil.ReverseProxy{
		FlushInterval: -1, // events and logs are passed on as they come
		Rewrite:       func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker" },
		Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 256,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", engine)
			}},
	}
	check := func(w http.ResponseWriter, r *http.Request) {
		if paths := allowed[r.Method]; paths == nil || !paths.MatchString(r.URL.Path) {
			http.Error(w, `{"message":"denied"}`, http.StatusForbidden)
			return
		}
		proxy.ServeHTTP(w, r)
	}
	server := &http.Server{Addr: "127.0.0.1:" + port, Handler: http.HandlerFunc(check), TLSConfig: &tls.Config{
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusted, MinVersion: tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519}, SessionTicketsDisabled: true}}
	log.Fatal(server.ListenAndServeTLS(chain, key))
}
