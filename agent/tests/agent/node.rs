//! An agent's process, its folder of manifests, and a scripted node proxy.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ambit_net::netns::Netns;
use ambit_net::seqpacket::SeqPacket;
use ambit_proto::zds::workload_request::Payload;
use ambit_proto::zds::{Ack, WorkloadRequest, WorkloadResponse, ZdsHello, workload_response};
use prost::Message;

use crate::pair::{Pair, serve};

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a state that is sure to come, and fails when it does not.
pub(crate) fn eventually(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) struct Node {
    name: String,
    folder: tempfile::TempDir,
    admin: u16,
    agent: Option<Child>,
    pod_path: String,
    /// How long the agent gives redirected connections to end.
    pub(crate) drain: &'static str,
}

impl Node {
    pub(crate) fn new(name: &str, pair: &Pair) -> Self {
        let probe = TcpListener::bind("127.0.0.1:0").unwrap();
        let node = Self {
            name: format!("{name}-{}", std::process::id()),
            folder: tempfile::tempdir().unwrap(),
            admin: probe.local_addr().unwrap().port(),
            agent: None,
            pod_path: pair.pod_path(),
            drain: "200ms",
        };
        fs::create_dir(node.manifests()).unwrap();
        node.write_pod(pair, &node.pod_path, &["10.99.0.1", "fd99::1"]);
        node.label_only(None);
        node
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("zds.sock")
    }

    /// Without a namespace when `netns` is empty.
    pub(crate) fn write_pod(&self, _pair: &Pair, netns: &str, addresses: &[&str]) {
        let annotation = if netns.is_empty() {
            String::new()
        } else {
            format!("\n  annotations:\n    ambit.io/netns: {netns}")
        };
        let addresses: Vec<_> = addresses
            .iter()
            .map(|ip| format!("{{ip: \"{ip}\"}}"))
            .collect();
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n  uid: {}{annotation}\nspec:\n  nodeName: {}\n  serviceAccountName: web\n  containers: [{{name: c}}]\n\
             status:\n  phase: Running\n  podIPs: [{}]\n",
            self.name,
            self.name,
            addresses.join(", ")
        );
        self.replace("pod.yaml", &text);
    }

    pub(crate) fn remove_pod(&self) {
        fs::remove_file(self.manifests().join("pod.yaml")).unwrap();
    }

    pub(crate) fn label(&self, _pair: &Pair, mode: Option<&str>) {
        self.label_only(mode);
    }

    pub(crate) fn label_only(&self, mode: Option<&str>) {
        let labels = mode.map_or(String::new(), |mode| {
            format!(", labels: {{istio.io/dataplane-mode: {mode}}}")
        });
        let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop{labels}}}\n");
        self.replace("namespace.yaml", &text);
    }

    /// As an editor that is careful does it.
    fn replace(&self, file: &str, text: &str) {
        let new = self.manifests().join(format!(".{file}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.manifests().join(file)).unwrap();
    }

    pub(crate) fn start_agent(&mut self) {
        let child = Command::new(env!("CARGO_BIN_EXE_agent"))
            .args([
                "--node-name",
                &self.name,
                "--settle",
                "200ms",
                "--drain",
                self.drain,
            ])
            .args(["--admin", &format!("127.0.0.1:{}", self.admin)])
            .arg("--manifests")
            .arg(self.manifests())
            .arg("--zds-socket")
            .arg(self.socket())
            .stdout(Stdio::from(self.log_file()))
            .spawn()
            .unwrap();
        self.agent = Some(child);
        eventually("the agent is ready", || {
            self.get("/healthz/ready").contains("ready\n")
        });
        assert!(!self.get("/healthz/ready").contains("not ready"));
    }

    fn log_file(&self) -> fs::File {
        let path = self.folder.path().join("agent.log");
        let mut options = fs::OpenOptions::new();
        options.create(true).append(true).open(path).unwrap()
    }

    /// What the agents wrote.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("agent.log")).unwrap()
    }

    /// With SIGKILL.
    pub(crate) fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    pub(crate) fn unenrol(&self, node: &str) {
        let status = Command::new(env!("CARGO_BIN_EXE_agent"))
            .args(["unenrol", "--all", "--node-name", node, "--manifests"])
            .arg(self.manifests())
            .status();
        assert!(status.unwrap().success());
    }

    /// The status file of the pod; empty when there is none.
    pub(crate) fn status(&self) -> String {
        fs::read_to_string(self.manifests().join(".status/shop_web.json")).unwrap_or_default()
    }

    pub(crate) fn debug(&self) -> String {
        self.get("/debug/pods")
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or(0.0)
    }

    fn get(&self, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.admin)) else {
            return String::new();
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let mut answer = String::new();
        drop(stream.write_all(request.as_bytes()));
        drop(stream.read_to_string(&mut answer));
        answer
    }

    /// A proxy that serves what it is told, each port saying its name, and comes back when the agent does.
    pub(crate) fn start_proxy(&self) {
        let socket = self.socket();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut served = Vec::new();
                while socket.parent().is_some_and(std::path::Path::exists) {
                    if let Ok(packet) = SeqPacket::connect(&socket) {
                        drop(converse(&packet, &mut served).await);
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
        });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.agent.is_some() {
            self.kill_agent();
        }
        if std::thread::panicking() {
            drop(std::io::stderr().write_all(self.log().as_bytes()));
        }
    }
}

async fn converse(packet: &SeqPacket, served: &mut Vec<(u64, u64)>) -> std::io::Result<()> {
    packet
        .send(&ZdsHello { version: 1 }.encode_to_vec(), None)
        .await?;
    loop {
        let mut buffer = [0; 1024];
        let (length, mut descriptors) = packet.recv(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let request = WorkloadRequest::decode(&buffer[..length]).unwrap();
        if let Some(Payload::Add(_)) = request.payload {
            let netns = Netns::from_fd(descriptors.remove(0)).unwrap();
            let id = (netns.id().device, netns.id().inode);
            if !served.contains(&id) {
                served.push(id);
                for (port, name) in [(15001, "outbound"), (15006, "inbound"), (15008, "hbone")] {
                    serve(&netns, port, name);
                }
            }
        }
        let ack = workload_response::Payload::Ack(Ack::default());
        let response = WorkloadResponse { payload: Some(ack) };
        packet.send(&response.encode_to_vec(), None).await?;
    }
}
