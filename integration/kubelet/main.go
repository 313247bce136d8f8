// Drives a CRI socket with the kubelet's own client code and Kubernetes' own streaming clients, so that a field number that
// is wrong on both of our ends does not pass.
//
//	kubelet SOCKET IMAGE FOLDER
//
// Each step says what it is before it is taken; the first one that does not hold ends the program with its reason.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
)

const patience = 30 * time.Second

type node struct {
	ctx     context.Context
	runtime internalapi.RuntimeService
	images  internalapi.ImageManagerService
	image   string
	logs    string
	pod     *cri.PodSandboxConfig
}

func main() {
	if len(os.Args) != 4 {
		fail("usage: kubelet SOCKET IMAGE FOLDER")
	}
	ctx := context.Background()
	endpoint := "unix://" + os.Args[1]
	runtime, err := remote.NewRemoteRuntimeService(ctx, endpoint, patience, nil, true)
	must(err)
	images, err := remote.NewRemoteImageService(ctx, endpoint, patience, nil, true)
	must(err)
	n := &node{ctx: ctx, runtime: runtime, images: images, image: os.Args[2], logs: os.Args[3]}
	n.speaks()
	id := n.pulls()
	pod := n.runsPod()
	container := n.runsContainer(pod, id)
	n.execs(container)
	n.streams(container)
	n.attaches(container)
	n.forwards(pod)
	n.ends(pod, container)
	n.removesImage(id)
	fmt.Println("done")
}

func (n *node) speaks() {
	step("Version, Status, RuntimeConfig")
	version, err := n.runtime.Version(n.ctx, "v1")
	must(err)
	expect(version.RuntimeApiVersion == "v1" && version.RuntimeName == "tare", "%v", version)
	status, err := n.runtime.Status(n.ctx, true)
	must(err)
	ready := map[string]bool{}
	for _, condition := range status.Status.Conditions {
		ready[condition.Type] = condition.Status
	}
	expect(ready[cri.RuntimeReady] && ready[cri.NetworkReady], "%v", status.Status)
	_, err = n.runtime.RuntimeConfig(n.ctx)
	must(err)
}

// Returns the image's id.
func (n *node) pulls() string {
	step("PullImage, ListImages, ImageStatus, ImageFsInfo")
	before, err := n.images.ImageFsInfo(n.ctx)
	must(err)
	id, err := n.images.PullImage(n.ctx, &cri.ImageSpec{Image: n.image}, nil, nil)
	must(err)
	expect(strings.HasPrefix(id, "sha256:"), "id %q", id)
	again, err := n.images.PullImage(n.ctx, &cri.ImageSpec{Image: n.image}, nil, nil)
	must(err)
	expect(again == id, "%q, then %q", id, again)
	listed, err := n.images.ListImages(n.ctx, nil)
	must(err)
	expect(len(listed) == 1 && listed[0].Id == id && listed[0].Size > 0, "%v", listed)
	expect(len(listed[0].RepoTags) == 1 && listed[0].RepoTags[0] == n.image, "%v", listed[0].RepoTags)
	expect(len(listed[0].RepoDigests) == 1, "%v", listed[0].RepoDigests)
	hex := strings.TrimPrefix(id, "sha256:")
	for _, name := range []string{n.image, listed[0].RepoDigests[0], id, hex, hex[:13]} {
		found, err := n.images.ImageStatus(n.ctx, &cri.ImageSpec{Image: name}, true)
		must(err)
		expect(found.Image != nil && found.Image.Id == id, "%s: %v", name, found.Image)
		expect(strings.Contains(found.Info["info"], "imageSpec"), "%s: %v", name, found.Info)
	}
	none, err := n.images.ImageStatus(n.ctx, &cri.ImageSpec{Image: "localhost/none"}, false)
	must(err)
	expect(none.Image == nil, "%v", none.Image)
	after, err := n.images.ImageFsInfo(n.ctx)
	must(err)
	used := func(info *cri.ImageFsInfoResponse) uint64 { return info.ImageFilesystems[0].UsedBytes.Value }
	expect(used(after) > used(before), "%d, then %d bytes", used(before), used(after))
	_, err = n.images.PullImage(n.ctx, &cri.ImageSpec{Image: n.image + "-none"}, nil, nil)
	expect(err != nil, "an image that is not there was pulled")
	return id
}

func (n *node) runsPod() string {
	step("RunPodSandbox, PodSandboxStatus, ListPodSandbox")
	n.pod = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "go", Namespace: "ns", Uid: "uid-" + filepath.Base(n.logs)},
		Hostname:     "go",
		LogDirectory: n.logs,
		Labels:       map[string]string{"driven": "by go"},
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/" + filepath.Base(n.logs)},
	}
	pod, err := n.runtime.RunPodSandbox(n.ctx, n.pod, "")
	must(err)
	status, err := n.runtime.PodSandboxStatus(n.ctx, pod, true)
	must(err)
	expect(status.Status.State == cri.PodSandboxState_SANDBOX_READY, "%v", status.Status)
	expect(status.Status.Labels["driven"] == "by go", "%v", status.Status.Labels)
	expect(net.ParseIP(status.Status.Network.Ip) != nil, "%v", status.Status.Network)
	filter := &cri.PodSandboxFilter{LabelSelector: map[string]string{"driven": "by go"}}
	listed, err := n.runtime.ListPodSandbox(n.ctx, filter)
	must(err)
	expect(len(listed) == 1 && listed[0].Id == pod, "%v", listed)
	return pod
}

func (n *node) runsContainer(pod, image string) string {
	step("CreateContainer, StartContainer, ContainerStatus, ListContainers")
	// Says what it is told, and answers on a port.
	script := "echo ready; nc -l -p 8080 -e cat & while read line; do echo \"heard $line\"; done; sleep 1000"
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"},
		Image:    &cri.ImageSpec{Image: image, UserSpecifiedImage: n.image},
		Command:  []string{"sh", "-c", script},
		Envs:     []*cri.KeyValue{{Key: "SAID", Value: []byte("so")}},
		LogPath:  "c.log",
		Stdin:    true,
		Linux:    &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}},
	}
	container, err := n.runtime.CreateContainer(n.ctx, pod, config, n.pod)
	must(err)
	must(n.runtime.StartContainer(n.ctx, container))
	status, err := n.runtime.ContainerStatus(n.ctx, container, true)
	must(err)
	expect(status.Status.State == cri.ContainerState_CONTAINER_RUNNING, "%v", status.Status)
	expect(status.Status.ImageId == image, "image %q", status.Status.ImageId)
	listed, err := n.runtime.ListContainers(n.ctx, &cri.ContainerFilter{PodSandboxId: pod})
	must(err)
	expect(len(listed) == 1 && listed[0].Id == container, "%v", listed)
	n.logHas("ready")
	return container
}

func (n *node) execs(container string) {
	step("ExecSync, UpdateContainerResources, ContainerStats")
	stdout, stderr, err := n.runtime.ExecSync(n.ctx, container, []string{"sh", "-c", "echo $SAID; echo no >&2"}, patience)
	must(err)
	expect(string(stdout) == "so\n" && string(stderr) == "no\n", "%q %q", stdout, stderr)
	_, _, err = n.runtime.ExecSync(n.ctx, container, []string{"sh", "-c", "exit 7"}, patience)
	code, coded := err.(exec.ExitError)
	expect(coded || strings.Contains(fmt.Sprint(err), "7"), "%v %v", code, err)
	_, _, err = n.runtime.ExecSync(n.ctx, container, []string{"sleep", "100"}, time.Second)
	expect(err != nil, "a program had no end")
	resources := &cri.ContainerResources{Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}}
	must(n.runtime.UpdateContainerResources(n.ctx, container, resources))
	stats, err := n.runtime.ContainerStats(n.ctx, container)
	must(err)
	expect(stats.Attributes.Id == container && stats.Memory.WorkingSetBytes.Value > 0, "%v", stats)
}

// Runs a program as crictl and the field's validation do, in one of the two protocols.
func (n *node) run(container, protocol, script string, stdin io.Reader) (string, string, error) {
	request := &cri.ExecRequest{
		ContainerId: container, Cmd: []string{"sh", "-c", script}, Stdin: stdin != nil, Stdout: true, Stderr: true,
	}
	answer, err := n.runtime.Exec(n.ctx, request)
	must(err)
	var stdout, stderr bytes.Buffer
	options := remotecommand.StreamOptions{Stdin: stdin, Stdout: &stdout, Stderr: &stderr}
	err = executor(answer.Url, protocol).StreamWithContext(n.ctx, options)
	return stdout.String(), stderr.String(), err
}

func executor(address, protocol string) remotecommand.Executor {
	target, err := url.Parse(address)
	must(err)
	var made remotecommand.Executor
	if protocol == "spdy" {
		made, err = remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, target)
	} else {
		made, err = remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, address)
	}
	must(err)
	return made
}

func (n *node) streams(container string) {
	for _, protocol := range []string{"spdy", "websocket"} {
		step("Exec over " + protocol)
		stdout, stderr, err := n.run(container, protocol, "echo out; echo err >&2; exit 3", nil)
		code, coded := err.(exec.ExitError)
		expect(coded && code.ExitStatus() == 3, "%v", err)
		expect(stdout == "out\n" && stderr == "err\n", "%q %q", stdout, stderr)
		input := strings.Repeat("0123456789abcde\n", 1<<16)
		stdout, _, err = n.run(container, protocol, "cat", strings.NewReader(input))
		must(err)
		expect(stdout == input, "of %d bytes %d came back", len(input), len(stdout))
		stdout, _, err = n.run(container, protocol, "head -c 1000000 /dev/zero", nil)
		must(err)
		expect(len(stdout) == 1000000, "%d bytes", len(stdout))
		_, _, err = n.run(container, protocol, "true", strings.NewReader(input))
		must(err)
	}
	_, err := n.runtime.Exec(n.ctx, &cri.ExecRequest{ContainerId: container, Cmd: []string{"true"}})
	expect(err != nil, "an exec without streams was allowed")
	_, err = n.runtime.Exec(n.ctx, &cri.ExecRequest{ContainerId: "none", Cmd: []string{"true"}, Stdout: true})
	expect(err != nil, "an exec in no container was allowed")
}

func (n *node) attaches(container string) {
	step("Attach over spdy")
	answer, err := n.runtime.Attach(n.ctx, &cri.AttachRequest{ContainerId: container, Stdin: true, Stdout: true, Stderr: true})
	must(err)
	typed, typing := io.Pipe()
	heard, hearing := io.Pipe()
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	go func() {
		options := remotecommand.StreamOptions{Stdin: typed, Stdout: hearing, Stderr: io.Discard}
		hearing.CloseWithError(executor(answer.Url, "spdy").StreamWithContext(ctx, options))
	}()
	go fmt.Fprintln(typing, "this")
	all := make([]byte, 0, 64)
	for !strings.Contains(string(all), "heard this") {
		piece := make([]byte, 64)
		length, err := heard.Read(piece)
		all = append(all, piece[:length]...)
		expect(err == nil, "%q: %v", all, err)
	}
	n.logHas("heard this")
}

func (n *node) forwards(pod string) {
	step("PortForward over spdy")
	answer, err := n.runtime.PortForward(n.ctx, &cri.PortForwardRequest{PodSandboxId: pod})
	must(err)
	target, err := url.Parse(answer.Url)
	must(err)
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	must(err)
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.New(dialer, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	must(err)
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		fail("forwarding: %v", err)
	}
	ports, err := forwarder.GetPorts()
	must(err)
	client, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	must(err)
	_, err = client.Write([]byte("there and back\n"))
	must(err)
	back := make([]byte, 15)
	_, err = io.ReadFull(client, back)
	must(err)
	expect(string(back) == "there and back\n", "%q", back)
	must(client.Close())
	close(stop)
	must(<-ended)
}

func (n *node) ends(pod, container string) {
	step("StopContainer, RemoveContainer, StopPodSandbox, RemovePodSandbox")
	must(n.runtime.StopContainer(n.ctx, container, 0))
	must(n.runtime.StopContainer(n.ctx, container, 0))
	status, err := n.runtime.ContainerStatus(n.ctx, container, false)
	must(err)
	expect(status.Status.State == cri.ContainerState_CONTAINER_EXITED, "%v", status.Status)
	must(n.runtime.RemoveContainer(n.ctx, container))
	must(n.runtime.RemoveContainer(n.ctx, container))
	must(n.runtime.StopPodSandbox(n.ctx, pod))
	must(n.runtime.StopPodSandbox(n.ctx, pod))
	must(n.runtime.RemovePodSandbox(n.ctx, pod))
	must(n.runtime.RemovePodSandbox(n.ctx, pod))
	pods, err := n.runtime.ListPodSandbox(n.ctx, nil)
	must(err)
	expect(len(pods) == 0, "%v", pods)
}

func (n *node) removesImage(id string) {
	step("RemoveImage")
	must(n.images.RemoveImage(n.ctx, &cri.ImageSpec{Image: n.image}))
	must(n.images.RemoveImage(n.ctx, &cri.ImageSpec{Image: n.image}))
	listed, err := n.images.ListImages(n.ctx, nil)
	must(err)
	expect(len(listed) == 0, "%v", listed)
	found, err := n.images.ImageStatus(n.ctx, &cri.ImageSpec{Image: id}, false)
	must(err)
	expect(found.Image == nil, "%v", found.Image)
}

// Waits for a line in the container's log.
func (n *node) logHas(line string) {
	end := time.Now().Add(patience)
	for {
		log, err := os.ReadFile(filepath.Join(n.logs, "c.log"))
		if err == nil && strings.Contains(string(log), " stdout F "+line+"\n") {
			return
		}
		expect(time.Now().Before(end), "no %q in the log: %s %v", line, log, err)
		time.Sleep(5 * time.Millisecond)
	}
}

func step(what string) {
	fmt.Println(what)
}

func must(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func expect(holds bool, format string, values ...any) {
	if !holds {
		fail(format, values...)
	}
}

func fail(format string, values ...any) {
	fmt.Fprintf(os.Stderr, "not so: "+format+"\n", values...)
	os.Exit(1)
}
