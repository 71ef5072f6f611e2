package ctlclient

// Usage is a host's load in percent, 0 to 100. A negative figure is unknown
// and is left out of Tables 10 and 21.
type Usage struct{ CPU, Memory, Disk float64 }
