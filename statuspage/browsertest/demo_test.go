package browsertest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// demo is the demonstration, as its users start it.
type demo struct {
	t       *testing.T
	program string
	addr    string
	command *exec.Cmd
}

func newDemo(t *testing.T) *demo {
	d := &demo{t: t, program: filepath.Join(t.TempDir(), "three-servers"), addr: "127.0.0.1:0"}
	build := exec.Command("go", "build", "-o", d.program, "./examples/three-servers")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(d.stop)
	d.start()
	return d
}

// start starts it, at the address that it had before.
func (d *demo) start() {
	d.t.Helper()
	d.command = exec.Command(d.program, "-http", d.addr)
	d.command.Stderr = os.Stderr
	out, err := d.command.StdoutPipe()
	if err == nil {
		err = d.command.Start()
	}
	if err != nil {
		d.t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	addr := regexp.MustCompile(`http://(\S+)/`).FindStringSubmatch(line)
	if addr == nil {
		d.t.Fatalf("the demonstration says %q", line)
	}
	d.addr = addr[1]
}

func (d *demo) stop() {
	if d.command == nil || d.command.Process == nil {
		return
	}
	_ = d.command.Process.Signal(os.Interrupt)
	if err := d.command.Wait(); err != nil {
		d.t.Errorf("the demonstration ends with %v", err)
	}
	d.command = nil
}

func (d *demo) url() string { return "http://" + d.addr + "/" }

// cell is the row of a key on a server, counted from 1.
func cell(server int, key string) string {
	return fmt.Sprintf("[...document.querySelectorAll('#server-%d .row')].find(row => row.dataset.key === %q)", server, key)
}

func reads(server int, key, value string) string {
	return fmt.Sprintf("%s?.querySelector('.value').textContent === %q", cell(server, key), value)
}

const equal = "document.getElementById('equal').textContent === 'all three are equal'"

// TestDemonstration does what somebody does who sees it for the first time.
func TestDemonstration(t *testing.T) {
	b, d := newBrowser(t), newDemo(t)
	b.open(d.url())
	b.until(equal)
	b.until("document.querySelectorAll('.row').length === 9")
	b.until("document.querySelectorAll('.wire:not(.cut):not(.down)').length === 3")
	b.shoot("start")

	// Write on one, and read on all.
	b.put(2, "animal", "cat")
	b.until(reads(1, "animal", "cat") + "&&" + reads(3, "animal", "cat"))
	b.put(3, "animal", "dog")
	b.until(reads(1, "animal", "dog"))
	b.click("#server-1 .row[data-key=animal] .erase")
	b.until(reads(3, "animal", "deleted"))

	// Cut one link: changes go round. Cut another: a server is left behind.
	b.click(".linkbox:nth-of-type(4) button") // the three nodes come first
	b.until("document.querySelectorAll('.wire.cut').length === 1")
	b.put(1, "road", "long")
	b.until(reads(2, "road", "long"))
	b.click(".linkbox:nth-of-type(5) button")
	b.until("document.querySelectorAll('.wire.cut').length === 2")
	b.put(1, "road", "closed")
	b.until(reads(3, "road", "closed"))
	b.until("document.getElementById('equal').textContent === '1 key differs'")
	b.until(reads(2, "road", "long"))
	b.shoot("cut")
	b.click("#links")
	b.until(equal)
	b.until(reads(2, "road", "closed"))

	// A conflict takes two clicks.
	for round := range 2 {
		b.click("#conflict")
		b.until("document.getElementById('conflict').textContent === 'Heal, and see who wins'")
		b.until("document.querySelectorAll('.row.differ').length === 3")
		if round == 0 {
			b.shoot("conflict")
		}
		b.click("#conflict")
		b.until(equal)
		b.until(fmt.Sprintf("document.querySelectorAll('.fight').length === %d", round+1))
	}
	b.until("document.querySelectorAll('.fight')[0].innerText.includes('is more than')")
	b.until("document.querySelectorAll('.fight')[1].innerText.includes('Both clocks were')")
	won := value(b, chromedp.Evaluate[string]("document.querySelector('.fight .won .value').textContent"))
	for server := 1; server <= 3; server++ {
		b.until(reads(server, "colour", won))
	}
	b.size(1320, 800, false)
	b.publish("three-servers.png")
	b.look("demo")
	b.size(1440, 900, false)

	// Close, miss something, open.
	b.click("#server-3 .close")
	b.until("document.querySelector('#server-3').classList.contains('closed')")
	b.click("#load")
	b.until("Number(" + cell(1, "visits/2") + "?.querySelector('.value').textContent) > 20")
	b.shoot("closed")
	b.click("#load")
	b.click("#server-3 .open")
	b.until(equal)
	b.until("!document.querySelector('#server-3').classList.contains('closed')")

	// Restore from a copy, and wipe: it catches up.
	b.until("document.querySelector('#server-2 .restore').disabled")
	b.click("#server-2 .copy")
	b.until("!document.querySelector('#server-2 .restore').disabled")
	b.until(equal)
	b.put(1, "after", "the copy")
	b.until(reads(2, "after", "the copy"))
	b.click("#links") // so that it is seen what the copy has
	b.until("document.querySelectorAll('.wire.cut').length === 3")
	b.click("#server-2 .restore")
	b.until(reads(2, "after", "–") + "&&" + reads(2, "road", "closed"))
	b.click("#server-3 .wipe")
	b.until(reads(3, "after", "–") + "&&" + reads(3, "road", "–"))
	b.click("#links")
	b.until(equal)
	b.until(reads(2, "after", "the copy") + "&&" + reads(3, "road", "closed"))

	// What is written is text, and never markup.
	b.put(1, hostile, hostile)
	b.until(reads(3, hostile, hostile))
	b.isSafe()

	// The stream of events breaks, and comes back.
	d.stop()
	b.until("document.getElementById('live').textContent === 'no connection, trying again'")
	d.start()
	b.until("document.getElementById('live').textContent === 'live'")
	b.until(equal)
	b.until("document.querySelectorAll('.row').length === 9")

	// The status page of the three follows a server that is opened again.
	b.open(d.url() + "status/")
	b.until("document.querySelectorAll('.replica').length === 3")
	b.until("document.getElementById('ready').textContent === 'ready'")
	epoch := value(b, chromedp.Evaluate[string]("document.querySelector('.replica code[title], .replica [title] code').parentNode.parentNode.innerText"))
	b.until("fetch('../do/operate?server=0&what=wipe', { method: 'POST' })")
	b.until(fmt.Sprintf("document.querySelector('.replica .facts').innerText !== %q", epoch))
	b.until("document.getElementById('live').textContent === 'live'")
}

// put writes a key on a server by its form.
func (b *browser) put(server int, key, content string) {
	b.t.Helper()
	form := fmt.Sprintf("#server-%d .put ", server)
	value(b, chromedp.SetValue(chromedp.CSS(form+"input:nth-of-type(1)"), key))
	value(b, chromedp.SetValue(chromedp.CSS(form+"input:nth-of-type(2)"), content))
	b.click(form + "button")
}

// look takes pictures for a person: narrow and dark, too.
func (b *browser) look(name string) {
	b.t.Helper()
	if *shots == "" {
		return
	}
	for _, size := range []struct {
		name          string
		width, height int64
		dark          bool
	}{{"wide", 1440, 900, false}, {"wide-dark", 1440, 900, true}, {"middle", 820, 1100, false}, {"narrow", 390, 844, false}, {"narrow-dark", 390, 844, true}} {
		b.size(size.width, size.height, size.dark)
		time.Sleep(time.Second) // for transitions to end
		b.shoot(name + "-" + size.name)
	}
}
