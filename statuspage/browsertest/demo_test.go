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
	return fmt.Sprintf("document.querySelector('#server-%d .row[data-key=%q]')", server, key)
}

func reads(server int, key, value string) string {
	return fmt.Sprintf("%s?.querySelector('.value').textContent === %q", cell(server, key), value)
}

const equal = "document.getElementById('equal').textContent === 'all three are equal'"

func TestScratch(t *testing.T) {
	d, b := newDemo(t), newBrowser(t)
	b.open(d.url())
	b.until(equal)
	time.Sleep(500 * time.Millisecond)
	b.shoot("1-start")
	b.click("#conflict")
	b.until("document.querySelectorAll('.row.differ').length === 3")
	time.Sleep(1500 * time.Millisecond)
	b.shoot("2-cut")
	b.click("#conflict")
	b.until(equal)
	time.Sleep(3500 * time.Millisecond)
	b.click("#conflict")
	b.until("document.querySelectorAll('.row.differ').length === 3")
	b.click("#conflict")
	b.until(equal)
	b.click("#server-3 .copy")
	time.Sleep(500 * time.Millisecond)
	b.click("#server-3 .close")
	b.click("#load")
	time.Sleep(2000 * time.Millisecond)
	b.shoot("3-closed")
	b.size(1440, 900, true)
	b.shoot("4-dark")
	b.size(390, 844, false)
	time.Sleep(500 * time.Millisecond)
	b.shoot("5-narrow")
	b.size(800, 1000, false)
	time.Sleep(500 * time.Millisecond)
	b.shoot("6-middle")
	b.size(1440, 900, false)
	b.open(d.url() + "status/")
	time.Sleep(6000 * time.Millisecond)
	b.shoot("7-status")
	b.size(390, 844, true)
	time.Sleep(500 * time.Millisecond)
	b.shoot("8-status-narrow")
}
