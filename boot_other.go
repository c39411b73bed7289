//go:build !linux && !darwin

package replicator

// machineBootID returns "": on this system, the boot is unknown. So the end of a process
// without Close counts as a power cut.
func machineBootID() string { return "" }
