package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// EnvHome names the environment variable that moves all state elsewhere.
const EnvHome = "SKY_HOME"

// FileName is the configuration in a home folder.
const FileName = "config.yaml"

// Env is where configuration comes from.
type Env struct {
	Home     string                      // SKY_HOME, absolute
	UserHome string                      // the user's home folder; empty when not known
	Dir      string                      // folder the command was started in
	Lookup   func(string) (string, bool) // environment
	ReadFile func(string) ([]byte, error)
}

// OSEnv is the environment of this process.
func OSEnv() (Env, error) {
	home, err := Home()
	if err != nil {
		return Env{}, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return Env{}, fmt.Errorf("the current folder is not known: %w", err)
	}
	user, _ := os.UserHomeDir()
	return Env{Home: home, UserHome: user, Dir: dir, Lookup: os.LookupEnv, ReadFile: os.ReadFile}, nil
}

// Home is the folder that holds all state: SKY_HOME, or ~/.skyloom. It is absolute; it need not exist.
func Home() (string, error) {
	user, _ := os.UserHomeDir()
	return HomeOf(os.Getenv(EnvHome), user)
}

// HomeOf is Home for a given value of SKY_HOME and a given user's home folder.
func HomeOf(skyHome, userHome string) (string, error) {
	switch {
	case skyHome == "" && userHome == "":
		return "", errors.New("neither SKY_HOME nor HOME is set; set SKY_HOME to a folder for Skyloom's state")
	case skyHome == "":
		skyHome = filepath.Join(userHome, ".skyloom")
	case (skyHome == "~" || len(skyHome) > 1 && skyHome[0] == '~' && os.IsPathSeparator(skyHome[1])) && userHome != "":
		skyHome = filepath.Join(userHome, skyHome[1:])
	}
	abs, err := filepath.Abs(skyHome)
	if err != nil {
		return "", fmt.Errorf("SKY_HOME %q can't be made absolute: %w", skyHome, err)
	}
	return abs, nil
}
