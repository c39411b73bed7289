//go:build !linux && !darwin

package replicator

// machineBootID would name the time since the machine was booted. Here there is
// no telling, so the end of a process without Close counts as a power cut.
func machineBootID() string { return "" }
