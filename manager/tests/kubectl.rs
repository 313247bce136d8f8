//! The streaming server driven by Debian's own `kubectl`, over SPDY and over WebSocket. Between the two stands a server that
//! does as an API server with a kubelet: it asks for a URL and passes the client's bytes on to it.
//!
//! What runs "in the container" is a program of this machine: containers have their own tests.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use tare_manager::cri::exec::Streams;
use tare_manager::cri::streaming::{Server, Settings, Work};
use tare_manager::error::{Error, Result};
use tare_proto::runtime::v1 as pb;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, copy};
use tokio::net::{TcpListener, TcpStream};

/// This machine, in a container's place.
#[derive(Clone)]
struct Host;

impl Work for Host {
    async fn exec(&self, container: &str, args: &[String], tty: bool, mut streams: Streams) -> Result<i32> {
        assert_eq!(container, "the-container");
        if tty {
            return Host::terminal(streams).await;
        }
        let mut command = tokio::process::Command::new(&args[0]);
        command.args(&args[1..]).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.stdin(if streams.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().map_err(|error| Error::io(format!("exec {:?}", args[0]), &error))?;
        let input = child.stdin.take().zip(streams.stdin.take()).map(|(mut to, mut from)| {
            tokio::spawn(async move {
                let _ = copy(&mut from, &mut to).await; // a program need not read to the end
            })
        });
        let output = async |from: Option<_>, to: Option<tare_manager::cri::exec::Output>| {
            if let (Some(mut from), Some(mut to)) = (from, to) {
                copy(&mut from, &mut to).await.unwrap();
            }
        };
        let errors = async |from: Option<tokio::process::ChildStderr>, to: Option<tare_manager::cri::exec::Output>| {
            if let (Some(mut from), Some(mut to)) = (from, to) {
                copy(&mut from, &mut to).await.unwrap();
            }
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        tokio::join!(output(stdout, streams.stdout.take()), errors(stderr, streams.stderr.take()));
        drop(input); // it may wait for a client that has no more to say
        Ok(child.wait().await.unwrap().code().unwrap_or(255))
    }

    async fn attach(&self, container: &str, mut streams: Streams) -> Result<()> {
        assert_eq!(container, "the-container");
        let mut stdout = streams.stdout.take().unwrap();
        stdout.write_all(b"attached: ").await.unwrap();
        copy(&mut streams.stdin.take().unwrap(), &mut stdout).await.unwrap();
        Ok(())
    }

    async fn forward(&self, sandbox: &str, port: u16, mut client: DuplexStream) -> Result<()> {
        assert_eq!(sandbox, "the-pod");
        let connected = TcpStream::connect(("127.0.0.1", port)).await;
        let mut server = connected.map_err(|error| Error::io(format!("connecting to port {port}"), &error))?;
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await; // either may break off
        Ok(())
    }
}

impl Host {
    /// Says how large the client's window is, and what was typed, as a terminal: on one output.
    async fn terminal(mut streams: Streams) -> Result<i32> {
        assert!(streams.stderr.is_none());
        let (columns, rows) = streams.sizes.recv().await.unwrap();
        let mut stdout = streams.stdout.take().unwrap();
        stdout.write_all(format!("{columns}x{rows}\r\n").as_bytes()).await.unwrap();
        let mut typed = [0; 3];
        streams.stdin.take().unwrap().read_exact(&mut typed).await.unwrap();
        stdout.write_all(format!("typed {}\r\n", String::from_utf8_lossy(&typed)).as_bytes()).await.unwrap();
        Ok(5)
    }
}

/// An API server with one pod.
struct Cluster {
    _runtime: tokio::runtime::Runtime,
    streaming: Server,
    api: u16,
    home: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Cluster {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (streaming, api) = runtime.block_on(async {
            let (streaming, _serving) = Server::start(&Settings::default(), Host).await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let api = listener.local_addr().unwrap().port();
            let server = streaming.clone();
            tokio::spawn(async move {
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    tokio::spawn(answer(socket, server.clone()));
                }
            });
            (streaming, api)
        });
        Cluster { _runtime: runtime, streaming, api, home: tempfile::tempdir().unwrap() }
    }

    /// `kubectl` of Debian's newest suite, speaking one protocol.
    fn kubectl(&self, protocol: Protocol, args: &[&str]) -> Command {
        let mut kubectl = Command::new(peer("kubernetes", "kubectl"));
        let websockets = if protocol == Protocol::WebSocket { "true" } else { "false" };
        kubectl.env("HOME", self.home.path()).env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
        kubectl.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets).env_remove("KUBECONFIG");
        kubectl.arg("--server").arg(format!("http://127.0.0.1:{}", self.api)).args(args);
        kubectl
    }

    fn run(&self, protocol: Protocol, args: &[&str], input: &[u8]) -> Output {
        let mut kubectl = self.kubectl(protocol, args);
        let mut child = kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writing = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        let _ = writing.join().unwrap(); // it need not read to the end
        output
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Spdy,
    WebSocket,
}

const BOTH: [Protocol; 2] = [Protocol::Spdy, Protocol::WebSocket];

fn peer(tree: &str, program: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let path = target.join("peers").join(tree).join("usr/bin").join(program);
    assert!(path.exists(), "{} is missing: `cargo xtask peers` puts it there", path.display());
    path
}

/// One connection of a client: documents, until it asks for streams.
async fn answer(mut socket: TcpStream, streaming: Server) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match socket.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let (first, headers) = head.split_once("\r\n").unwrap();
        let target = first.split(' ').nth(1).unwrap();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if let Some(url) = streams(&streaming, path, query) {
            let place = url.strip_prefix("http://").unwrap();
            let (address, path) = place.split_once('/').unwrap();
            let mut upstream = TcpStream::connect(address).await.unwrap();
            let method = first.split(' ').next().unwrap();
            upstream.write_all(format!("{method} /{path} HTTP/1.1\r\n{headers}").as_bytes()).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut socket, &mut upstream).await; // either may break off
            return;
        }
        let body = document(path);
        let status = if body.is_null() { "404 Not Found" } else { "200 OK" };
        let body = body.to_string();
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}");
        socket.write_all(answer.as_bytes()).await.unwrap();
    }
}

/// What a kubelet does with a request for streams.
fn streams(streaming: &Server, path: &str, query: &str) -> Option<String> {
    let mut cmd = Vec::new();
    let mut flags = HashMap::new();
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match key {
            "command" => cmd.push(decoded(value)),
            _ => drop(flags.insert(key, value == "true")),
        }
    }
    let flag = |name: &str| flags.get(name).copied().unwrap_or_default();
    let [stdin, stdout, stderr, tty] = ["stdin", "stdout", "stderr", "tty"].map(flag);
    let container_id = "the-container".to_owned();
    match path.strip_prefix("/api/v1/namespaces/default/pods/p/")? {
        "exec" => Some(streaming.exec(pb::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr }).unwrap()),
        "attach" => Some(streaming.attach(pb::AttachRequest { container_id, stdin, tty, stdout, stderr }).unwrap()),
        "portforward" => {
            let request = pb::PortForwardRequest { pod_sandbox_id: "the-pod".into(), port: vec![] };
            Some(streaming.port_forward(request).unwrap())
        }
        _ => None,
    }
}

fn decoded(text: &str) -> String {
    let bytes = text.replace('+', " ").into_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            out.push(u8::from_str_radix(std::str::from_utf8(&bytes[at + 1..at + 3]).unwrap(), 16).unwrap());
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).unwrap()
}

/// As much of an API server as `kubectl` looks at.
fn document(path: &str) -> Value {
    match path {
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}),
        "/api/v1" => json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [
            {"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"]},
        ]}),
        "/api/v1/namespaces/default/pods/p" => json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "p", "namespace": "default", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "i", "stdin": true, "ports": []}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "state": {"running": {}}}]},
        }),
        _ => Value::Null,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn exec_keeps_outputs_apart_and_brings_the_exit_code() {
    let cluster = Cluster::start();
    for protocol in BOTH {
        let script = "echo out; echo err >&2; exit 3";
        let output = cluster.run(protocol, &["exec", "p", "--", "sh", "-c", script], b"");
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!((stdout.as_str(), output.status.code()), ("out\n", Some(3)), "{protocol:?}: {stderr}");
        assert!(stderr.contains("err\n") && stderr.contains("exit code 3"), "{protocol:?}: {stderr}");

        let output = cluster.run(protocol, &["exec", "p", "--", "/no/such/program"], b"");
        let stderr = text(&output.stderr);
        assert!(stderr.contains("exec \"/no/such/program\": no such file or directory"), "{protocol:?}: {stderr}");
        assert_eq!(output.status.code(), Some(1), "{protocol:?}: {stderr}");
    }
}

#[test]
fn input_goes_through_whole_and_its_end_is_seen() {
    let cluster = Cluster::start();
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    for protocol in BOTH {
        let output = cluster.run(protocol, &["exec", "-i", "p", "--", "cat"], &input);
        assert!(output.status.success(), "{protocol:?}: {}", text(&output.stderr));
        assert!(output.stdout == input, "{protocol:?}: {} bytes came back", output.stdout.len());
        // A program that ends without reading ends the session, too.
        let output = cluster.run(protocol, &["exec", "-i", "p", "--", "true"], &input);
        assert!(output.status.success(), "{protocol:?}: {}", text(&output.stderr));
        let output = cluster.run(protocol, &["attach", "-i", "p"], b"hello\n");
        assert_eq!(text(&output.stdout), "attached: hello\n", "{protocol:?}: {}", text(&output.stderr));
    }
}

#[test]
fn a_terminal_has_the_clients_size() {
    let cluster = Cluster::start();
    for protocol in BOTH {
        let kubectl = cluster.kubectl(protocol, &["exec", "-it", "p", "--", "sh"]);
        let words: Vec<String> = std::iter::once(kubectl.get_program())
            .chain(kubectl.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let mut script = Command::new("script");
        script.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let line = format!("stty cols 101 rows 33; {}; echo code $?", words.join(" "));
        script.args(["-q", "-c", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = script.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut seen = String::new();
        while !seen.contains("101x33") {
            assert_ne!(output.read_line(&mut seen).unwrap(), 0, "{protocol:?}: {seen}");
        }
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"abc").unwrap();
        output.read_to_string(&mut seen).unwrap();
        assert!(seen.contains("typed abc") && seen.contains("code 5"), "{protocol:?}: {seen}");
        child.wait().unwrap();
    }
}

/// A running `kubectl port-forward`, ended with the test.
struct Forwarding {
    kubectl: Child,
    local: u16,
}

impl Forwarding {
    fn start(cluster: &Cluster, protocol: Protocol, port: u16) -> Forwarding {
        let mut kubectl = cluster.kubectl(protocol, &["port-forward", "pod/p", &format!(":{port}")]);
        let mut kubectl = kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(kubectl.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let local = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
        let local = local.and_then(|local| local.parse().ok());
        let Some(local) = local else {
            kubectl.kill().unwrap();
            panic!("{protocol:?}: {line}{}", text(&kubectl.wait_with_output().unwrap().stderr));
        };
        Forwarding { kubectl, local }
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

#[test]
fn ports_are_forwarded_and_refusals_told() {
    let cluster = Cluster::start();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    // Answers what it was sent, backwards, once the client has said that there is no more.
    std::thread::spawn(move || {
        for socket in server.incoming() {
            let mut socket = socket.unwrap();
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).unwrap();
            bytes.reverse();
            socket.write_all(&bytes).unwrap();
        }
    });
    for protocol in BOTH {
        let forwarding = Forwarding::start(&cluster, protocol, port);
        for _ in 0..3 {
            let mut client = std::net::TcpStream::connect(("127.0.0.1", forwarding.local)).unwrap();
            let sent = vec![7; 200_000];
            client.write_all(b"abc").unwrap();
            client.write_all(&sent).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let mut back = Vec::new();
            client.read_to_end(&mut back).unwrap();
            assert_eq!(back.len(), sent.len() + 3, "{protocol:?}");
            assert!(back.ends_with(b"cba"), "{protocol:?}");
        }
        drop(forwarding);

        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut forwarding = Forwarding::start(&cluster, protocol, free);
        let mut client = std::net::TcpStream::connect(("127.0.0.1", forwarding.local)).unwrap();
        let mut nothing = Vec::new();
        let _ = client.read_to_end(&mut nothing); // closed, or reset
        assert!(nothing.is_empty());
        let mut told = String::new();
        let mut stderr = BufReader::new(forwarding.kubectl.stderr.take().unwrap());
        while !told.contains("connection refused") {
            assert_ne!(stderr.read_line(&mut told).unwrap(), 0, "{protocol:?}: {told}");
        }
    }
}

#[test]
fn a_token_works_once_and_only_for_what_it_was_given() {
    let cluster = Cluster::start();
    let request = || pb::ExecRequest {
        container_id: "c".into(),
        cmd: vec!["true".into()],
        stdout: true,
        ..pb::ExecRequest::default()
    };
    let url = cluster.streaming.exec(request()).unwrap();
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let ask = |path: &str, upgrade: &str| {
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        let head = format!("POST /{path} HTTP/1.1\r\nhost: x\r\n{upgrade}\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        let mut first = String::new();
        BufReader::new(socket).read_line(&mut first).unwrap();
        first.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    let upgrade = "connection: upgrade\r\nupgrade: SPDY/3.1\r\n";
    assert_eq!(ask(path, upgrade), "101");
    assert_eq!(ask(path, upgrade), "404");
    assert_eq!(ask("exec/guess", upgrade), "404");
    assert_eq!(ask("", upgrade), "404");
    let other = |url: String| url.rsplit('/').next().unwrap().to_owned();
    let token = other(cluster.streaming.exec(request()).unwrap());
    assert_eq!(ask(&format!("attach/{token}"), upgrade), "404");
    assert_eq!(ask(&format!("exec/{token}"), upgrade), "404");
    let token = other(cluster.streaming.exec(request()).unwrap());
    assert_eq!(ask(&format!("exec/{token}"), ""), "400");
}

#[test]
fn a_client_that_vanishes_takes_its_program_along() {
    let cluster = Cluster::start();
    for protocol in BOTH {
        let mut kubectl = cluster.kubectl(protocol, &["exec", "-i", "p", "--", "sh", "-c", "echo $$; exec sleep 1000"]);
        let mut kubectl = kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut pid = String::new();
        BufReader::new(kubectl.stdout.as_mut().unwrap()).read_line(&mut pid).unwrap();
        let program = PathBuf::from(format!("/proc/{}/cmdline", pid.trim()));
        assert!(program.exists(), "{protocol:?}: {pid}");
        kubectl.kill().unwrap();
        kubectl.wait().unwrap();
        // The file is empty once it is dead, and gone once it is reaped.
        wait_until("the program ends", || std::fs::read(&program).map_or(true, |words| words.is_empty()));
    }
}

#[test]
fn clients_that_upgrade_and_go_leave_nothing() {
    let cluster = Cluster::start();
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = files();
    for n in 0..300 {
        let request = pb::AttachRequest {
            container_id: "the-container".into(),
            stdin: true,
            stdout: true,
            ..pb::AttachRequest::default()
        };
        let url = cluster.streaming.attach(request).unwrap();
        let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        let upgrade = match n % 2 {
            0 => "upgrade: SPDY/3.1\r\n",
            _ => "upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: k\r\n",
        };
        socket
            .write_all(format!("GET /{path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n{upgrade}\r\n").as_bytes())
            .unwrap();
        let mut first = String::new();
        BufReader::new(&socket).read_line(&mut first).unwrap();
        assert!(first.contains(" 101 "), "{first}");
    }
    wait_until("connections are closed", || files() <= before);
}

fn wait_until(what: &str, happened: impl Fn() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !happened() {
        assert!(std::time::Instant::now() < end, "waiting until {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn with_a_certificate_it_speaks_tls_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=node"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let start = |settings: Settings| runtime.block_on(async move { Server::start(&settings, Host).await });
    let only_half = Settings { tls_key: Some(key.clone()), ..Settings::default() };
    assert!(matches!(start(only_half), Err(Error::InvalidArgument(_))));
    let swapped =
        Settings { tls_certificate: Some(key.clone()), tls_key: Some(certificate.clone()), ..Settings::default() };
    assert!(matches!(start(swapped), Err(Error::InvalidArgument(_))));

    let settings = Settings { tls_certificate: Some(certificate), tls_key: Some(key), ..Settings::default() };
    let (server, _serving) = start(settings).unwrap();
    let request = pb::PortForwardRequest { pod_sandbox_id: "the-pod".into(), port: vec![] };
    let url = server.port_forward(request).unwrap();
    let (address, path) = url.strip_prefix("https://").unwrap().split_once('/').unwrap();
    let upgrade = format!("POST /{path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: SPDY/3.1\r\n\r\n");
    let mut plain = std::net::TcpStream::connect(address).unwrap();
    plain.write_all(upgrade.as_bytes()).unwrap();
    let mut refused = Vec::new();
    let _ = plain.read_to_end(&mut refused); // an alert, or a reset
    assert!(!text(&refused).contains("HTTP"), "{}", text(&refused));
    let mut client = Command::new("openssl");
    client.args(["s_client", "-quiet", "-connect", address]).stderr(Stdio::null());
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    client.stdin.as_mut().unwrap().write_all(upgrade.as_bytes()).unwrap();
    let mut first = String::new();
    BufReader::new(client.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(first.starts_with("HTTP/1.1 101 "), "{first}");
}
