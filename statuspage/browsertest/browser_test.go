// Package browsertest looks at the pages with a browser: headless Chromium, driven over
// the DevTools protocol.
package browsertest

import (
	"bytes"
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

var (
	update = flag.Bool("update", false, "make the pictures in docs anew")
	shots  = flag.String("shots", "", "write screenshots to this folder")
)

// patience bounds each wait. Waits end as soon as what they wait for is there.
const patience = 15 * time.Second

// browser is a tab. What goes wrong in it fails the test.
type browser struct {
	t   *testing.T
	ctx context.Context
}

// chromium finds the browser. In CI, and for root, who can install it, it has to be there.
func chromium(t *testing.T) string {
	if path := os.Getenv("CHROMIUM"); path != "" {
		return path
	}
	if os.Getuid() == 0 || os.Getenv("CI") != "" {
		path, err := exec.LookPath("chromium")
		if err != nil {
			t.Fatal("there is no chromium: install Debian's package, or set CHROMIUM to the path of one")
		}
		return path
	}
	t.Skip("CHROMIUM is not set to the path of a Chromium, so the pages are not tested")
	return ""
}

func newBrowser(t *testing.T) *browser {
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium(t)), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("disable-gpu", true), chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("lang", "en-GB"))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b, threw := &browser{t, ctx}, 0
	err := chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			if threw++; threw <= 3 {
				t.Errorf("the page threw: %s %s", e.ExceptionDetails.Text, e.ExceptionDetails.Exception.Description)
			}
		case *log.EventEntryAdded:
			if text := e.Entry.Text; e.Entry.Level == "error" && !strings.Contains(text, "net::ERR_") && !strings.Contains(text, "status of 409") {
				t.Errorf("the browser reports: %s (%s)", text, e.Entry.URL)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	call(b, runtime.Enable, cdp.Empty{})
	call(b, log.Enable, cdp.Empty{})
	b.size(1440, 900, false)
	return b
}

func value[T any](b *browser, a chromedp.Action[T]) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, a)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

func call[P, R any](b *browser, command cdp.Command[P, R], params P) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, command, params); err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) open(url string) { b.t.Helper(); value(b, chromedp.Navigate(url)) }

// is reports whether an expression is true in the page.
func (b *browser) is(expression string) bool {
	b.t.Helper()
	return value(b, chromedp.Evaluate[bool]("Boolean("+expression+")"))
}

// until waits until an expression is true in the page.
func (b *browser) until(expression string) {
	b.t.Helper()
	for began := time.Now(); !b.is(expression); time.Sleep(30 * time.Millisecond) {
		if time.Since(began) > patience {
			text := value(b, chromedp.Evaluate[string]("document.body.innerText"))
			b.shoot("failed")
			b.t.Fatalf("not within %v: %s\nthe page shows:\n%s", patience, expression, text)
		}
	}
}

func (b *browser) click(selector string) {
	b.t.Helper()
	value(b, chromedp.Click(chromedp.CSS(selector)))
}

// size sets the window, and whether it is dark.
func (b *browser) size(width, height int64, dark bool) {
	b.t.Helper()
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	value(b, chromedp.EmulateViewport(width, height))
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
}

func (b *browser) picture() []byte {
	b.t.Helper()
	return value(b, chromedp.CaptureScreenshot())
}

// shoot writes a screenshot for a person to look at, if that was asked for.
func (b *browser) shoot(name string) {
	b.t.Helper()
	if *shots == "" {
		return
	}
	png := value(b, chromedp.FullScreenshot(100))
	if err := os.WriteFile(filepath.Join(*shots, name+".png"), png, 0o666); err != nil {
		b.t.Fatal(err)
	}
}

// publish makes a picture in docs anew, if that was asked for.
func (b *browser) publish(name string) {
	b.t.Helper()
	if *update {
		time.Sleep(time.Second) // for transitions to end
	}
	png := b.picture()
	if !bytes.HasPrefix(png, []byte("\x89PNG")) {
		b.t.Fatal("a screenshot is no PNG")
	}
	if !*update {
		return
	}
	if err := os.WriteFile(filepath.Join("..", "..", "docs", name), png, 0o666); err != nil {
		b.t.Fatal(err)
	}
}

// hostile is text that would run as a script, were it taken for markup.
const hostile = `<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>`

// isSafe fails if hostile text has become markup.
func (b *browser) isSafe() {
	b.t.Helper()
	if b.is("window.harmed") || b.is("document.querySelector('img[src=x]')") || !b.is("document.body.innerText.includes('<img src=x')") {
		b.t.Fatal("hostile text became markup, or is not shown")
	}
	if width := value(b, chromedp.Evaluate[int]("document.documentElement.scrollWidth - document.documentElement.clientWidth")); width > 0 {
		b.t.Fatalf("the page is %d pixels wider than the window", width)
	}
}
