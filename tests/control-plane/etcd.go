package main

import (
	"flag"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
)

// runEtcd serves one etcd member on a Unix socket until it fails. It does not
// sync to disk: its data never outlive the process.
func runEtcd(args []string) error {
	flags := flag.NewFlagSet("etcd", flag.ExitOnError)
	dataDir := flags.String("data-dir", "", "where the data go")
	socket := flags.String("socket", "", "the Unix socket to serve clients on")
	if err := flags.Parse(args); err != nil {
		return err
	}

	config := embed.NewConfig()
	config.Dir = *dataDir
	config.UnsafeNoFsync = true
	config.LogLevel = "warn"
	config.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration
	// A single member elects itself after one election timeout; it need not wait long.
	config.TickMs, config.ElectionMs = 20, 200
	config.LogOutputs = []string{"stderr"}
	config.ListenClientUrls = []url.URL{{Scheme: "unix", Host: *socket}}
	// A single member has no peers. What it advertises stays the default, TCP on
	// localhost: nobody asks for it.
	config.ListenPeerUrls = nil

	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	return <-etcd.Err()
}
