package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/level-replicator/replicator/statuspage"
)

// This file owns asking the page that a replica serves.

// page is where a program serves package statuspage.
type page struct{ base url.URL }

// newPage understands the address of a page: with or without the scheme, the last slash, or
// the name of a part of it.
func newPage(text string) (*page, error) {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	if u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is no http or https address of a page", text)
	}
	for _, part := range []string{"status.json", "readyz", "events"} {
		u.Path = strings.TrimSuffix(u.Path, "/"+part)
	}
	u.Path = strings.TrimSuffix(u.Path, "/") + "/"
	u.RawQuery, u.Fragment = "", ""
	return &page{*u}, nil
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 64 << 20

// get asks for a part of the page. The caller closes the body.
func (p *page) get(ctx context.Context, part string) (*http.Response, error) {
	u := p.base
	u.Path += part
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil && strings.Contains(err.Error(), "malformed HTTP") {
		return nil, fmt.Errorf("%s is no HTTP server: if a replica accepts its peers there, give the address of its page", u.Host)
	}
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		hint := ""
		if answer.StatusCode == http.StatusNotFound {
			hint = ": give the whole path of the page"
		}
		return nil, fmt.Errorf("%s answers %s%s", u.Redacted(), answer.Status, hint)
	}
	return answer, nil
}

// report asks for status.json.
func (p *page) report(ctx context.Context, timeout time.Duration) (r statuspage.Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := p.get(ctx, "status.json")
	if err != nil {
		return r, err
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer)).Decode(&r); err != nil {
		return r, fmt.Errorf("%s has no status of replicas there: %w", p.base.Redacted(), err)
	}
	if r.At.IsZero() || len(r.Replicas) == 0 {
		return r, fmt.Errorf("%s has no status of replicas there", p.base.Redacted())
	}
	return r, nil
}

// events reads the stream of events, and hands the frames over until it ends.
func (p *page) events(ctx context.Context, each func(frame []byte) error) error {
	answer, err := p.get(ctx, "events")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	lines := bufio.NewReader(answer.Body)
	for {
		text, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		if frame, found := bytes.CutPrefix(text, []byte("data: ")); found {
			if err := each(frame); err != nil {
				return err
			}
		}
	}
}

// timeoutFlag registers the flag that bounds an answer.
func timeoutFlag(c *call) *time.Duration {
	return positiveFlag(c, "timeout", 10*time.Second, "wait at most this `time` for an answer")
}

// positiveFlag is a flag for a time above zero.
func positiveFlag(c *call, name string, value time.Duration, usage string) *time.Duration {
	c.flags.Func(name, fmt.Sprintf("%s (default %v)", usage, value), func(text string) error {
		d, err := time.ParseDuration(text)
		if err == nil && d <= 0 {
			err = errors.New("it must be positive")
		}
		if err == nil {
			value = d
		}
		return err
	})
	return &value
}
