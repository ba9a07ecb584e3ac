// Package gpus finds the NVIDIA devices of a machine and gives them the names under which people ask for them.
//
// It asks nvidia-smi and nothing else, and knows nothing of who uses a device.
package gpus
