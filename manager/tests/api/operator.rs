//! What an operator and a service manager see of the daemon.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use tare_proto::containerd::services::version::v1::version_client::VersionClient;

use super::tared::{Tared, channel, tared};

/// One request over HTTP; the answer's head and body.
fn http(socket: &Path, request: &str, body: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let length = body.len();
    let head = format!("{request} HTTP/1.1\r\nhost: d\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test]
async fn the_debug_socket_shows_counts_and_changes_the_log_level_while_the_daemon_runs() {
    let tared = Tared::configured("[debug]\naddress = 'DIR/debug.sock'\n[colours]\nred = 1\n").await;
    assert!(tared.log().contains("the configuration's colours means nothing here"), "{}", tared.log());
    VersionClient::new(tared.channel().await).version(()).await.unwrap();
    let socket = tared.dir.path().join("debug.sock");
    let (status, counts) = http(&socket, "GET /v1/metrics", "");
    assert_eq!(status, "HTTP/1.1 200 OK");
    let line = "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Version\",\
                grpc_service=\"containerd.services.version.v1.Version\"} 1";
    assert!(counts.lines().any(|found| found == line), "{counts}");
    assert_eq!(http(&socket, "PUT /log-level", "loud").0, "HTTP/1.1 400 Bad Request");
    assert_eq!(http(&socket, "PUT /log-level", "error").0, "HTTP/1.1 200 OK");
    assert_eq!(http(&socket, "GET /elsewhere", "").0, "HTTP/1.1 404 Not Found");
    let before = tared.log();
    let pid = rustix::process::Pid::from_child(&tared.server);
    let mut tared = tared;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    tared.server.wait().unwrap();
    assert_eq!(tared.log(), before, "at level error nothing is said of the end");
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_service_manager_gives_the_socket_and_is_told_when_all_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    let listener = UnixListener::bind(dir.path().join("d.sock")).unwrap();
    // The pid must be the daemon's: it is that of the shell which becomes it.
    let mut shell = Command::new("sh");
    let daemon = tared(dir.path());
    shell.args(["-c", "exec 3<&0 </dev/null; LISTEN_PID=$$ exec \"$@\"", "sh"]).arg(daemon.get_program());
    shell.args(daemon.get_args()).env("LISTEN_FDS", "1").env("NOTIFY_SOCKET", dir.path().join("notify"));
    let stdin = Stdio::from(listener.as_fd().try_clone_to_owned().unwrap());
    assert!(listener.as_raw_fd() > 2);
    let mut child = shell.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    drop(listener);
    let mut word = [0; 64];
    let length = notify.recv(&mut word).unwrap();
    assert_eq!(&word[..length], b"READY=1");
    let socket = dir.path().join("d.sock");
    VersionClient::new(channel(socket.clone()).await).version(()).await.unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let length = notify.recv(&mut word).unwrap();
    assert_eq!(&word[..length], b"STOPPING=1");
    assert!(child.wait().unwrap().success());
    assert!(socket.exists(), "the socket is the service manager's");
}

#[test]
fn a_configuration_of_containerds_is_shown_in_the_present_form() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("containerd.toml");
    std::fs::write(
        &file,
        "version = 2\nroot = '/r'\noom_score = -999\nrequired_plugins = ['x']\n[grpc]\naddress = '/s'\n",
    )
    .unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_tared")).args(["config", "migrate", "--config"]).arg(&file).output();
    let out = out.unwrap();
    let (shown, said) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert_eq!(said, "tared: required_plugins means nothing here\n");
    for line in ["version = 3", "oom_score = -999", "root = \"/r\"", "address = \"/s.ttrpc\""] {
        assert!(shown.lines().any(|found| found == line), "{line}\n{shown}");
    }
}

/// Makes `NAME.key` and `NAME.crt` in `dir`, signed by `ca` there; by itself if that is its name.
fn certificate(dir: &Path, name: &str, ca: &str) {
    let openssl = |arguments: &str| {
        let out = Command::new("openssl").current_dir(dir).args(arguments.split(' ')).output().unwrap();
        assert!(out.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let subject = format!("-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -subj /CN={name}");
    if name == ca {
        return openssl(&format!("req -x509 -days 1 {subject} -out {name}.crt"));
    }
    std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    openssl(&format!("req {subject} -out {name}.csr"));
    let sign = format!("-CA {ca}.crt -CAkey {ca}.key -CAcreateserial -days 1 -extfile names");
    openssl(&format!("x509 -req -in {name}.csr {sign} -out {name}.crt"));
}

#[tokio::test]
async fn on_a_port_only_clients_with_a_certificate_of_ours_are_heard() {
    use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

    let keys = tempfile::tempdir().unwrap();
    for (name, ca) in
        [("ours", "ours"), ("theirs", "theirs"), ("daemon", "ours"), ("friend", "ours"), ("foe", "theirs")]
    {
        certificate(keys.path(), name, ca);
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = keys.path().display();
    let _tared = Tared::configured(&format!(
        "[grpc]\ntcp_address = '127.0.0.1:{port}'\ntcp_tls_ca = '{at}/ours.crt'\n\
         tcp_tls_cert = '{at}/daemon.crt'\ntcp_tls_key = '{at}/daemon.key'\n"
    ))
    .await;
    let read = |name: &str| std::fs::read(keys.path().join(name)).unwrap();
    for (client, heard) in [(Some("friend"), true), (Some("foe"), false), (None, false)] {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("ours.crt")));
        if let Some(client) = client {
            tls = tls.identity(Identity::from_pem(read(&format!("{client}.crt")), read(&format!("{client}.key"))));
        }
        let endpoint = Endpoint::try_from(format!("https://127.0.0.1:{port}")).unwrap().tls_config(tls).unwrap();
        let answered = match endpoint.connect().await {
            Ok(channel) => VersionClient::new(channel).version(()).await.is_ok(),
            Err(_) => false,
        };
        assert_eq!(answered, heard, "{client:?}");
    }
}
