package filesync

import "fmt"

// SizeText gives a number of bytes as people read it, in powers of ten: "330 B", "4.1 kB", "1.25 GB".
func SizeText(n int64) string {
	switch {
	case n < 1e3:
		return fmt.Sprintf("%d B", n)
	case n < 1e6:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	case n < 1e9:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.2f GB", float64(n)/1e9)
}

// AmountText gives a number of files and their size: "1 file, 330 B".
func AmountText(files int, size int64) string {
	word := "files"
	if files == 1 {
		word = "file"
	}
	return fmt.Sprintf("%d %s, %s", files, word, SizeText(size))
}
