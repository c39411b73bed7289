package replicator

import "flag"

var update = flag.Bool("update", false, "")
