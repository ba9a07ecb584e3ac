package catalog

// Device is one kind of accelerator.
type Device struct {
	Name         string  // canonical, the word users write in `accelerators:`
	MemoryGB     float64 // of one device, as its maker states it (of one chip for TPUs)
	Manufacturer string  // lower case: nvidia, amd, google, amazon, intel
}

// devices are the accelerators with a known memory, in the order in which lists show them. The figures are those of the makers'
// data sheets: nvidia.com/en-us/data-center (product pages and "Datasheet" PDFs of each part), nvidia.com/en-us/geforce
// (specifications), amd.com/en/products/accelerators/instinct, cloud.google.com/tpu/docs (system architecture, HBM per
// chip), docs.aws.amazon.com/ec2 (accelerated computing instances: Inferentia and Trainium memory), habana.ai (Gaudi).
var devices = []Device{
	// NVIDIA, data centre.
	{"GB300", 288, nvidia}, // data sheet: 288 GB HBM3e per GPU
	{"GB200", 186, nvidia}, // NVL72 data sheet: 13.4 TB over 72 GPUs
	{"B300", 288, nvidia},
	{"B200", 180, nvidia}, // DGX B200: 1,440 GB over 8 GPUs
	{"GH200", 96, nvidia},
	{"H200", 141, nvidia},
	{"H100", 80, nvidia},
	{"H100-MEGA", 80, nvidia}, // the same part with another network on one cloud
	{"H100-NVL", 94, nvidia},
	{"H20", 96, nvidia},
	{"A100-80GB", 80, nvidia},
	{"A100", 40, nvidia},
	{"A800", 80, nvidia},
	{"L40S", 48, nvidia},
	{"L40", 48, nvidia},
	{"L4", 24, nvidia},
	{"A40", 48, nvidia},
	{"A30", 24, nvidia},
	{"A16", 16, nvidia}, // four devices of 16 GB per board
	{"A10G", 24, nvidia},
	{"A10", 24, nvidia},
	{"A2", 16, nvidia},
	{"V100-32GB", 32, nvidia},
	{"V100", 16, nvidia},
	{"T4", 16, nvidia},
	{"T4g", 16, nvidia},
	{"P100", 16, nvidia},
	{"P40", 24, nvidia},
	{"P4", 8, nvidia},
	{"K80", 12, nvidia}, // two devices of 12 GB per board
	{"M60", 8, nvidia},  // two devices of 8 GB per board
	// NVIDIA, workstation and consumer.
	{"RTXPRO6000", 96, nvidia},
	{"RTX6000-Ada", 48, nvidia},
	{"RTX5000-Ada", 32, nvidia},
	{"RTX4000-Ada", 20, nvidia},
	{"RTX2000-Ada", 16, nvidia},
	{"A6000", 48, nvidia},
	{"A5500", 24, nvidia},
	{"A5000", 24, nvidia},
	{"A4500", 20, nvidia},
	{"A4000", 16, nvidia},
	{"RTX8000", 48, nvidia},
	{"RTX6000", 24, nvidia},
	{"RTX5000", 16, nvidia},
	{"RTX4000", 8, nvidia},
	{"RTX5090", 32, nvidia},
	{"RTX5080", 16, nvidia},
	{"RTX5070Ti", 16, nvidia},
	{"RTX5070", 12, nvidia},
	{"RTX4090", 24, nvidia},
	{"RTX4080SUPER", 16, nvidia},
	{"RTX4080", 16, nvidia},
	{"RTX4070TiSUPER", 16, nvidia},
	{"RTX4070Ti", 12, nvidia},
	{"RTX4070SUPER", 12, nvidia},
	{"RTX4070", 12, nvidia},
	{"RTX4060Ti", 8, nvidia},
	{"RTX4060", 8, nvidia},
	{"RTX3090Ti", 24, nvidia},
	{"RTX3090", 24, nvidia},
	{"RTX3080Ti", 12, nvidia},
	{"RTX3080", 10, nvidia},
	{"RTX3070Ti", 8, nvidia},
	{"RTX3070", 8, nvidia},
	{"RTX3060Ti", 8, nvidia},
	{"RTX3060", 12, nvidia},
	{"RTX2080Ti", 11, nvidia},
	{"RTX2080", 8, nvidia},
	{"GTX1080Ti", 11, nvidia},
	{"GTX1080", 8, nvidia},
	{"TITANRTX", 24, nvidia},
	{"TITANV", 12, nvidia},
	// AMD Instinct.
	{"MI355X", 288, amd},
	{"MI350X", 288, amd},
	{"MI325X", 256, amd},
	{"MI300X", 192, amd},
	{"MI300A", 128, amd},
	{"MI250X", 128, amd},
	{"MI250", 128, amd},
	{"MI210", 64, amd},
	{"MI100", 32, amd},
	{"Radeon-Pro-V520", 8, amd},
	// Amazon and Intel.
	{"Trainium2", 96, amazon},
	{"Trainium", 32, amazon},
	{"Inferentia2", 32, amazon},
	{"Inferentia", 8, amazon},
	{"Gaudi3", 128, intel},
	{"Gaudi2", 96, intel},
	{"Gaudi HL-205", 32, intel},
}

const (
	nvidia = "nvidia"
	amd    = "amd"
	amazon = "amazon"
	intel  = "intel"
	google = "google"
)

// aliases are other spellings that mean a device of the table; keys as fold makes them.
var aliases = map[string]string{
	"a10040gb":            "A100",
	"a10080":              "A100-80GB",
	"h10080gb":            "H100",
	"h10094gb":            "H100-NVL",
	"h200141gb":           "H200",
	"v10016gb":            "V100",
	"v10032":              "V100-32GB",
	"l40s48gb":            "L40S",
	"rtxa6000":            "A6000",
	"rtxa5500":            "A5500",
	"rtxa5000":            "A5000",
	"rtxa4500":            "A4500",
	"rtxa4000":            "A4000",
	"quadrortx8000":       "RTX8000",
	"quadrortx6000":       "RTX6000",
	"quadrortx5000":       "RTX5000",
	"quadrortx4000":       "RTX4000",
	"6000ada":             "RTX6000-Ada",
	"rtx6000adaedition":   "RTX6000-Ada",
	"gaudi":               "Gaudi HL-205",
	"hl205":               "Gaudi HL-205",
	"inf2":                "Inferentia2",
	"trn2":                "Trainium2",
	"rtxpro6000blackwell": "RTXPRO6000",
}

// tpuMemoryGB is the HBM of one chip by generation.
var tpuMemoryGB = map[string]float64{
	"v2": 16, "v3": 32, "v4": 32, "v5litepod": 16, "v5e": 16, "v5p": 95, "v6e": 32, "v7": 192, "v7x": 192,
}

// common are the GPUs that a list without arguments shows, newest first.
var common = []string{
	"B200", "H200", "H100", "A100-80GB", "A100", "L40S", "L4", "A10G", "A10", "V100-32GB", "V100", "T4", "P100", "MI300X", "RTX4090",
}

// commonTPUs are the TPU slices that a list without arguments shows.
var commonTPUs = []string{
	"tpu-v2-8", "tpu-v3-8", "tpu-v4-8", "tpu-v5litepod-1", "tpu-v5litepod-4", "tpu-v5litepod-8", "tpu-v5p-8",
	"tpu-v6e-1", "tpu-v6e-4", "tpu-v6e-8",
}
