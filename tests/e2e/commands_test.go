package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
)

// patience is how long a script waits for what must come about: far longer than it takes on a busy machine.
const patience = 2 * time.Minute

// commands of the scripts.
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"rc":      cmdRC,
	"waitfor": cmdWaitFor,
	"json":    cmdJSON,
	"capture": cmdCapture,
	"absent":  cmdAbsent,
	"proc":    cmdProc,
	"http":    cmdHTTP,
	"raw":     cmdRaw,
	"replace": cmdReplace,
	"files":   cmdFiles,
	"foreign": cmdForeign,
	"reap":    cmdReap,
	"hooks":   cmdHooks,
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// cmdRC runs a program that must end with an exit code: rc 100 sky logs x.
func cmdRC(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || neg {
		ts.Fatalf("usage: rc CODE program [args...]")
	}
	if got := strconv.Itoa(exitCode(ts.Exec(args[1], args[2:]...))); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// cmdWaitFor repeats a program until what it prints on stdout matches a pattern (with !: no longer does), for patience at most.
func cmdWaitFor(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] waitfor REGEXP program [args...]")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	var out, errs bytes.Buffer
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		out.Reset()
		errs.Reset()
		cmd := exec.Command(lookPath(ts, args[1]), args[2:]...)
		cmd.Dir, cmd.Env = ts.MkAbs("."), environ(ts)
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run()
		if re.Match(out.Bytes()) != neg {
			_, _ = ts.Stdout().Write(out.Bytes())
			_, _ = ts.Stderr().Write(errs.Bytes())
			return
		}
	}
	ts.Fatalf("in vain for %v\n[stdout]\n%s[stderr]\n%s", patience, out.String(), errs.String())
}

func lookPath(ts *testscript.TestScript, name string) string {
	for _, d := range filepath.SplitList(ts.Getenv("PATH")) {
		p := filepath.Join(d, name)
		if st, err := os.Stat(p); err == nil && !st.IsDir() && st.Mode()&0o111 != 0 {
			return p
		}
	}
	return name
}

// environ is the script's environment as far as the programs of the product look at it.
func environ(ts *testscript.TestScript) []string {
	var out []string
	for _, k := range []string{"PATH", "HOME", "SKY_HOME", "NO_COLOR", "SKYPILOT_USER", "SKYPILOT_USER_ID", "TMPDIR", "SKYPILOT_API_SERVER_ENDPOINT", "SKYPILOT_SERVICE_ACCOUNT_TOKEN", "SKYLOOM_NO_AUTOSTART"} {
		if v := ts.Getenv(k); v != "" {
			out = append(out, k+"="+v)
		}
	}
	return out
}

// cmdJSON looks into a JSON document: json stdout a.b[0].c==value "[name=x].status=~UP|INIT" "#list==3" "a.b!=null".
func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || neg {
		ts.Fatalf("usage: json FILE PATH{==,!=,=~}VALUE...")
	}
	var doc any
	if err := json.Unmarshal([]byte(ts.ReadFile(args[0])), &doc); err != nil {
		ts.Fatalf("%s is not JSON: %v", args[0], err)
	}
	for _, a := range args[1:] {
		m := regexp.MustCompile(`^(.*?)(==|!=|=~)(.*)$`).FindStringSubmatch(a)
		if m == nil {
			ts.Fatalf("json: %q has no ==, != or =~", a)
		}
		got, err := dig(doc, m[1])
		if err != nil {
			ts.Fatalf("json: %s: %v", a, err)
		}
		ok := false
		switch m[2] {
		case "==":
			ok = got == m[3]
		case "!=":
			ok = got != m[3]
		case "=~":
			ok = regexp.MustCompile("(?s)^(?:" + m[3] + ")$").MatchString(got)
		}
		if !ok {
			ts.Fatalf("json: %s: it is %s", a, got)
		}
	}
}

var stepRE = regexp.MustCompile(`^(?:\.?([A-Za-z0-9_-]+)|\[(\d+)\]|\[([a-z_]+)=([^\]]*)\])`)

// dig finds a path in a document and prints what is there: text as it is, the rest as JSON. A path that begins with #
// is the number of elements.
func dig(doc any, path string) (string, error) {
	count := strings.HasPrefix(path, "#")
	rest := strings.TrimPrefix(path, "#")
	v := doc
	for rest != "" {
		m := stepRE.FindStringSubmatch(rest)
		if m == nil {
			return "", fmt.Errorf("bad path at %q", rest)
		}
		rest = rest[len(m[0]):]
		switch {
		case m[1] != "":
			o, ok := v.(map[string]any)
			if !ok {
				return "", fmt.Errorf("no object at %q", m[1])
			}
			if v, ok = o[m[1]]; !ok {
				return "(absent)", nil
			}
		case m[2] != "":
			l, ok := v.([]any)
			i, _ := strconv.Atoi(m[2])
			if !ok || i >= len(l) {
				return "(absent)", nil
			}
			v = l[i]
		default:
			l, ok := v.([]any)
			if !ok {
				return "", fmt.Errorf("no list at %q", m[0])
			}
			found := false
			for _, e := range l {
				if o, ok := e.(map[string]any); ok && text(o[m[3]]) == m[4] {
					v, found = e, true
					break
				}
			}
			if !found {
				return "(absent)", nil
			}
		}
	}
	if count {
		return strconv.Itoa(reflect.ValueOf(v).Len()), nil
	}
	return text(v), nil
}

func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, _ := json.Marshal(v)
	return string(b)
}

// cmdCapture keeps the first group of a pattern found in the last stdout: capture VAR REGEXP [stdout|stderr|FILE].
func cmdCapture(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || neg {
		ts.Fatalf("usage: capture VAR REGEXP [FILE]")
	}
	from := "stdout"
	if len(args) > 2 {
		from = args[2]
	}
	m := regexp.MustCompile("(?m)" + args[1]).FindStringSubmatch(ts.ReadFile(from))
	if m == nil {
		ts.Fatalf("%s does not match %s", from, args[1])
	}
	ts.Setenv(args[0], m[len(m)-1])
}

// cmdAbsent looks through files and folders for a text that must not stand in any of them (with !: must in one).
func cmdAbsent(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] absent TEXT PATH...")
	}
	var found []string
	for _, p := range args[1:] {
		if p == "stdout" || p == "stderr" {
			if strings.Contains(ts.ReadFile(p), args[0]) {
				found = append(found, p)
			}
			continue
		}
		_ = filepath.WalkDir(ts.MkAbs(p), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(args[0])) {
					found = append(found, path)
				}
			}
			return nil
		})
	}
	if (len(found) > 0) != neg {
		ts.Fatalf("%q found in %q", args[0], found)
	}
}

// cmdProc waits until a process with a matching command line runs (with !: none does any more), for patience at most.
// Programs under test that were given the pattern are meant too.
func cmdProc(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] proc REGEXP")
	}
	re := regexp.MustCompile(args[0])
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		n := 0
		for _, p := range processes("") {
			if re.MatchString(p.args) {
				n++
			}
		}
		if (n > 0) != neg {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%d processes match %s", n, args[0])
		}
	}
}

// cmdHTTP calls the script's server: http METHOD PATH [Header:value...] [@FILE | =BODY]. The token of SKY_HOME goes
// along unless Authorization is given; an empty value leaves a header out. The status and the body go to stdout.
func cmdHTTP(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || neg {
		ts.Fatalf("usage: http METHOD PATH [Header:value...] [@FILE|=BODY]")
	}
	home := ts.Getenv("SKY_HOME")
	var state struct {
		URL string `json:"url"`
	}
	b, err := os.ReadFile(filepath.Join(home, "server.json"))
	ts.Check(err)
	ts.Check(json.Unmarshal(b, &state))
	token, err := os.ReadFile(filepath.Join(home, "token"))
	ts.Check(err)
	head := http.Header{"Authorization": {"Bearer " + strings.TrimSpace(string(token))}, "Content-Type": {"application/json"}}
	var body io.Reader
	host := ""
	for _, a := range args[2:] {
		switch {
		case strings.HasPrefix(a, "@"):
			body = strings.NewReader(ts.ReadFile(a[1:]))
		case strings.HasPrefix(a, "="):
			body = strings.NewReader(a[1:])
		default:
			k, v, _ := strings.Cut(a, ":")
			switch {
			case k == "Host":
				host = v
			case v == "":
				head.Del(k)
			default:
				head.Set(k, v)
			}
		}
	}
	req, err := http.NewRequest(args[0], state.URL+args[1], body)
	ts.Check(err)
	req.Header = head
	if host != "" {
		req.Host = host
	}
	resp, err := (&http.Client{Timeout: patience}).Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	got, err := io.ReadAll(io.LimitReader(resp.Body, 10<<20))
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%d\n%s\n", resp.StatusCode, got)
}

// cmdRaw sends bytes to the script's server, closes its side, and reads what comes until the server hangs up, for 5 s at
// most: raw BYTES, with Go's escapes. What came goes to stdout.
func cmdRaw(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: raw BYTES")
	}
	text, err := strconv.Unquote(`"` + strings.ReplaceAll(args[0], `"`, `\"`) + `"`)
	ts.Check(err)
	var state struct {
		URL string `json:"url"`
	}
	b, err := os.ReadFile(filepath.Join(ts.Getenv("SKY_HOME"), "server.json"))
	ts.Check(err)
	ts.Check(json.Unmarshal(b, &state))
	conn, err := net.Dial("tcp", strings.TrimPrefix(state.URL, "http://"))
	ts.Check(err)
	defer conn.Close()
	ts.Check(conn.SetDeadline(time.Now().Add(5 * time.Second)))
	_, _ = conn.Write([]byte(text))
	_ = conn.(*net.TCPConn).CloseWrite()
	got, _ := io.ReadAll(io.LimitReader(conn, 1<<20))
	_, _ = ts.Stdout().Write(got)
}

// cmdReplace changes a text in a file: replace OLD NEW FILE.
func cmdReplace(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 || neg {
		ts.Fatalf("usage: replace OLD NEW FILE")
	}
	s := ts.ReadFile(args[2])
	if !strings.Contains(s, args[0]) {
		ts.Fatalf("%s does not contain %q", args[2], args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(strings.ReplaceAll(s, args[0], args[1])), 0o644))
}

// cmdFiles fills a folder with small files: files DIR N.
func cmdFiles(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		ts.Fatalf("usage: files DIR N")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	for i := range n {
		dir := filepath.Join(ts.MkAbs(args[0]), fmt.Sprintf("d%03d", i/500))
		if i%500 == 0 {
			ts.Check(os.MkdirAll(dir, 0o755))
		}
		ts.Check(os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%06d", i)), []byte(strconv.Itoa(i)), 0o644))
	}
}

// cmdForeign listens on a port of this machine as another product's server would, to the end of the script. It skips
// the script where the port is taken: foreign PORT.
func cmdForeign(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: foreign PORT")
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+args[0])
	if err != nil {
		ts.Value(tKey{}).(testscript.T).Skip("the port is not free for the test: ", err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/health" {
			fmt.Fprint(w, `{"status":"healthy","api_version":"41","version":"0.10.0"}`)
			return
		}
		http.NotFound(w, r)
	})}
	go func() { _ = s.Serve(l) }()
	ts.Defer(func() { s.Close() })
}

// cmdReap runs the Reaper of the script's server, through the server's workflow engine, and waits for its end.
func cmdReap(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec("sky", "api", "info", "-o", "json"))
	var info struct {
		Temporal struct {
			Address   string `json:"address"`
			Namespace string `json:"namespace"`
			TaskQueue string `json:"task_queue"`
			TokenFile string `json:"token_file"`
		} `json:"temporal"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &info))
	token, err := os.ReadFile(info.Temporal.TokenFile)
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := client.DialContext(ctx, client.Options{HostPort: info.Temporal.Address, Namespace: info.Temporal.Namespace,
		Credentials: client.NewAPIKeyStaticCredentials(strings.TrimSpace(string(token))), ConnectionOptions: client.ConnectionOptions{TLSDisabled: true},
		Logger: sdklog.NewStructuredLogger(slog.New(slog.DiscardHandler))})
	ts.Check(err)
	defer c.Close()
	run, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: "reaper-by-hand", TaskQueue: info.Temporal.TaskQueue}, "Reaper")
	ts.Check(err)
	ts.Check(run.Get(ctx, nil))
}
