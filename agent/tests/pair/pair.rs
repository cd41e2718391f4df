//! Two network namespaces joined by a link: a pod and a client.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ambit_net::dial::Dial;
use ambit_net::netns::Netns;
use socket2::{Domain, Socket, Type};

/// How long a connection may take that is dropped on its way.
const PATIENCE: Duration = Duration::from_millis(600);

/// What came of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// This server answered.
    From(&'static str),
    /// Nobody did.
    Nothing,
}

/// The two namespaces; they go when this goes.
pub(crate) struct Pair {
    pub(crate) pod: Netns,
    client: Netns,
    pod_name: String,
    client_name: String,
}

impl Pair {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let base = format!("ambit-agent-{}-{number}-{name}", std::process::id());
        let (pod_name, client_name) = (format!("{base}-p"), format!("{base}-c"));
        for name in [&pod_name, &client_name] {
            run(&format!("ip netns add {name}"));
            run(&format!("ip -n {name} link set lo up"));
        }
        run(&format!(
            "ip -n {pod_name} link add eth0 type veth peer name eth0 netns {client_name}"
        ));
        for (name, number) in [(&pod_name, 1), (&client_name, 2)] {
            run(&format!("ip -n {name} link set eth0 up"));
            run(&format!(
                "ip -n {name} address add 10.99.0.{number}/24 dev eth0"
            ));
            run(&format!(
                "ip -n {name} address add fd99::{number}/64 dev eth0 nodad"
            ));
        }
        let open = |name: &str| Netns::open(format!("/run/netns/{name}")).unwrap();
        Self {
            pod: open(&pod_name),
            client: open(&client_name),
            pod_name,
            client_name,
        }
    }

    pub(crate) fn pod_path(&self) -> String {
        format!("/run/netns/{}", self.pod_name)
    }

    pub(crate) fn client_path(&self) -> String {
        format!("/run/netns/{}", self.client_name)
    }

    /// Pairs of pod's and client's address, IPv4 first.
    pub(crate) fn addresses(&self) -> Vec<(IpAddr, IpAddr)> {
        let of = |text: &str| text.parse().unwrap();
        vec![
            (of("10.99.0.1"), of("10.99.0.2")),
            (of("fd99::1"), of("fd99::2")),
        ]
    }

    pub(crate) fn in_pod(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.pod_name))
    }

    pub(crate) fn in_client(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.client_name))
    }

    pub(crate) fn serve_in_pod(&self, port: u16, name: &'static str) {
        serve(&self.pod, port, name);
    }

    pub(crate) fn serve_in_client(&self, port: u16, name: &'static str) {
        serve(&self.client, port, name);
    }

    pub(crate) fn ask_from_client(&self, to: (IpAddr, u16)) -> Reply {
        ask(socket(&self.client, to.0), to.into())
    }

    pub(crate) fn ask_from_client_as(&self, source: IpAddr, to: SocketAddr) -> Reply {
        let socket = socket(&self.client, to.ip());
        socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        ask(socket, to)
    }

    pub(crate) fn ask_from_pod(&self, to: (IpAddr, u16)) -> Reply {
        ask(socket(&self.pod, to.0), to.into())
    }

    pub(crate) fn marked(&self, to: (IpAddr, u16), mark: u32) -> Reply {
        let socket = socket(&self.pod, to.0);
        socket.set_mark(mark).unwrap();
        ask(socket, to.into())
    }

    /// From inside the pod with a foreign source, as the proxy does.
    pub(crate) fn spoofed(&self, source: IpAddr, to: SocketAddr, mark: u32) -> Reply {
        self.open_spoofed(source, to, mark)
            .map_or(Reply::Nothing, reply)
    }

    pub(crate) fn open_spoofed(
        &self,
        source: IpAddr,
        to: SocketAddr,
        mark: u32,
    ) -> Option<TcpStream> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let dial = Dial {
            to,
            source: Some(source),
            mark: Some(mark),
            netns: Some(&self.pod),
            timeout: PATIENCE,
            keepalive: None,
        };
        let stream = runtime.block_on(async {
            let stream = dial.connect().await.ok()?;
            Some(stream.into_std().unwrap())
        })?;
        stream.set_nonblocking(false).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        Some(stream)
    }

    pub(crate) fn open_from_client(&self, to: SocketAddr) -> TcpStream {
        open(socket(&self.client, to.ip()), to).unwrap()
    }

    pub(crate) fn open_from_pod(&self, to: SocketAddr) -> TcpStream {
        open(socket(&self.pod, to.ip()), to).unwrap()
    }

    pub(crate) fn open_marked(&self, to: SocketAddr, mark: u32) -> TcpStream {
        let socket = socket(&self.pod, to.ip());
        socket.set_mark(mark).unwrap();
        open(socket, to).unwrap()
    }

    pub(crate) fn open_from_client_port(&self, to: SocketAddr, port: u16) -> TcpStream {
        open(self.socket_at_port(to, port), to).unwrap()
    }

    pub(crate) fn try_from_client_port(&self, to: SocketAddr, port: u16) -> Reply {
        ask(self.socket_at_port(to, port), to)
    }

    fn socket_at_port(&self, to: SocketAddr, port: u16) -> Socket {
        let socket = socket(&self.client, to.ip());
        socket.set_reuse_address(true).unwrap();
        let any: IpAddr = if to.is_ipv4() {
            [0, 0, 0, 0].into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        socket.bind(&SocketAddr::new(any, port).into()).unwrap();
        socket
    }

    /// Makes the server end the connection, so that its side is the one in TIME_WAIT.
    pub(crate) fn close_at_server(&self, mut stream: TcpStream) {
        stream.write_all(b".").unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in [&self.pod_name, &self.client_name] {
            drop(Command::new("ip").args(["netns", "delete", name]).output());
        }
    }
}

fn socket(netns: &Netns, towards: IpAddr) -> Socket {
    let domain = if towards.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    netns
        .run(|| Socket::new(domain, Type::STREAM, None).unwrap())
        .unwrap()
}

fn open(socket: Socket, to: SocketAddr) -> std::io::Result<TcpStream> {
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket.into())
}

fn ask(socket: Socket, to: SocketAddr) -> Reply {
    open(socket, to).map_or(Reply::Nothing, reply)
}

fn reply(mut stream: TcpStream) -> Reply {
    let mut answer = [0; 64];
    if stream.write_all(b"?").is_err() {
        return Reply::Nothing;
    }
    let length = stream.read(&mut answer).unwrap_or(0);
    let names = ["application", "peer", "outbound", "inbound", "hbone"];
    let name = names
        .into_iter()
        .find(|name| name.as_bytes() == &answer[..length]);
    name.map_or(Reply::Nothing, Reply::From)
}

/// Answers each byte with `name`; a full stop ends the connection. Lives as long as the test process.
pub(crate) fn serve(netns: &Netns, port: u16, name: &'static str) {
    let listener = netns
        .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap())
        .unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read(&mut byte).is_ok_and(|length| length == 1) && byte != *b"." {
                    if stream.write_all(name.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
