// Package faults holds the tests of the project's reason: what must stay true whatever fails. Seeded schedules of random
// operations and faults run in fake time (seeds_test.go) and on the real engine (engine_test.go); scripted faults are
// named by the row of the fault list they stand for (rows_test.go).
package faults
