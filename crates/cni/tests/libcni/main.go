// libcni on the command line, as cnitool is: the reference that tests/libcni.rs compares with.
//
//	libcni VERB CONFDIR CACHEDIR PATH NETWORK CONTAINER NETNS IFNAME ARGS CAPABILITIES
//
// ARGS is K=V;K=V, CAPABILITIES a JSON object.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	verb, confDir, cacheDir, path := args[0], args[1], args[2], args[3]
	list, err := libcni.LoadConfList(confDir, args[4])
	if err != nil {
		return err
	}
	rt := &libcni.RuntimeConf{ContainerID: args[5], NetNS: args[6], IfName: args[7]}
	for _, pair := range strings.Split(args[8], ";") {
		if key, value, found := strings.Cut(pair, "="); found {
			rt.Args = append(rt.Args, [2]string{key, value})
		}
	}
	if err := json.Unmarshal([]byte(args[9]), &rt.CapabilityArgs); err != nil {
		return err
	}
	cni := libcni.NewCNIConfigWithCacheDir(filepath.SplitList(path), cacheDir, nil)
	ctx := context.Background()
	switch verb {
	case "add":
		result, err := cni.AddNetworkList(ctx, list, rt)
		if err != nil {
			return err
		}
		return result.Print()
	case "check":
		return cni.CheckNetworkList(ctx, list, rt)
	case "del":
		return cni.DelNetworkList(ctx, list, rt)
	case "cached":
		// What libcni reads from the cache: configuration, parameters and result.
		config, past, err := cni.GetNetworkListCachedConfig(list, rt)
		if err != nil {
			return err
		}
		result, err := cni.GetNetworkListCachedResult(list, rt)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
			"config": string(config), "args": past.Args, "capabilities": past.CapabilityArgs,
			"result": result,
		})
	}
	return fmt.Errorf("no such verb: %s", verb)
}
