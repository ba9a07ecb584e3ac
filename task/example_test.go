package task_test

import (
	"fmt"

	"github.com/skyloom/skyloom/task"
)

func ExampleParse() {
	_, err := task.Parse("task.yaml", []byte("run: echo hi\nresources:\n  accelerator: H100\n  ports: 70000\n"), task.ParseOptions{})
	fmt.Println(err)
	// Output:
	// task.yaml:3:3: resources: unknown field "accelerator"; did you mean "accelerators"?
	// task.yaml:4:10: resources.ports: "70000" is out of range; ports go from 1 to 65535
}

func ExampleOverrides_Apply() {
	f, _ := task.Parse("task.yaml", []byte("run: train\nresources: {infra: aws, accelerators: H100:8}\n"), task.ParseOptions{})
	flags := task.Overrides{Infra: "gcp", GPUs: "{A100:8, H100:8}", CPUs: "32+"}
	if err := flags.Apply(f.Tasks[0]); err != nil {
		fmt.Println(err)
	}
	fmt.Print(string(f.Tasks[0].Render(task.SecretsRedacted)))
	for _, request := range f.Tasks[0].Candidates()[0] {
		fmt.Println(request.Infra, request.Accelerator, request.CPUs)
	}
	// Output:
	// resources:
	//   infra: gcp
	//   accelerators:
	//     A100:8: null
	//     H100:8: null
	//   cpus: 32+
	// run: train
	// gcp A100:8 32+
	// gcp H100:8 32+
}
