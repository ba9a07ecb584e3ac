// Package histories replays recorded histories of every kind of workflow on the present code: a workflow that runs while
// a new version is rolled out must find its way. The histories stand decoded in testdata, one per story; they are
// recorded anew with
//
//	SKYLOOM_RECORD=1 go test ./tests/histories -run TestRecord
//
// which is done before a release lands, once its workflows are settled: from then on they change by named versions only.
package histories
