// Package nodepools holds `sky ssh up` and `sky ssh down`: pools of machines that people already have.
package nodepools
