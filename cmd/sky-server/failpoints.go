package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skyloom/skyloom/internal/failpoint"
)

// failpoints lists the moments at which crash tests can end this program, for tests that visit them all.
func failpoints() *cobra.Command {
	return &cobra.Command{
		Use: "failpoints", Short: "List the points at which tests can crash the server", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range failpoint.Names() {
				fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			return nil
		},
	}
}
