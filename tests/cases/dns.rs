//! DNS: the mesh's names answered, all others passed on as they are, compared with a real server.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use ambit_tests::apps::bytes::Noise;
use ambit_tests::dns::{Dnsmasq, query};
use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::pod::Pod;
use ambit_tests::world::{Shared, World, started};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

/// Where pods send their queries: an address of nobody. The proxy decides who is asked.
const V4: &str = "10.96.0.253";
const V6: &str = "fd00:10:96::253";

const HEADLESS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: db, namespace: mesh}
spec:
  clusterIP: None
  selector: {app: server}
  ports: [{name: tcp, port: 80, targetPort: 8080}]
"#;

/// `mesh/client` asks dnsmasq in `outside/resolver`; `mesh/lost` asks a pod that serves no DNS. The other
/// three were given no file that says whom to ask.
fn plan() -> Plan {
    let captured =
        |pod: ambit_tests::plan::PodPlan| pod.annotation("ambient.istio.io/dns-capture", "true");
    Plan::new("dns")
        .namespace("mesh", &[AMBIENT])
        .namespace("other", &[AMBIENT])
        .namespace("outside", &[])
        .pod_with("mesh/client", 1, captured)
        .pod_with("mesh/lost", 1, captured)
        .pod_with("mesh/none", 1, captured)
        .pod_with("mesh/folder", 1, captured)
        .pod_with("mesh/noise", 1, captured)
        .pod("mesh/server", 2)
        .pod("other/ledger", 2)
        .pod("outside/resolver", 2)
        .pod("outside/plain", 1)
        .service("mesh/server", "server", &[("tcp", 80, 8080)])
        .service("other/ledger", "ledger", &[("tcp", 80, 8080)])
        .manifest("headless", HEADLESS)
        .setting("RUST_LOG", "info,dns=debug")
}

static WORLD: Shared = Shared::new(|| {
    let world = started(plan());
    {
        let world = world.read();
        let conf = |pod: &str, search: &str, server: &str| {
            let text = format!("search {search}\nnameserver {}\n", world.pod(server).ipv4());
            world.pod(pod).write_resolv_conf(&text);
        };
        let kubernetes = "mesh.svc.cluster.local svc.cluster.local cluster.local";
        conf("mesh/client", "corp.example", "outside/resolver");
        conf("mesh/lost", kubernetes, "outside/plain");
        let name = "db.mesh.svc.cluster.local";
        let db = query(name, RecordType::A, None).to_vec().unwrap();
        world.eventually("the mesh's names are known", || {
            let answer = world.pod("mesh/lost").dns_over_udp(ip(V4), &db);
            answer.is_ok_and(|bytes| !read(&bytes).answers.is_empty())
        });
    }
    world
});

/// Records of a zone that is nobody else's.
fn records() -> Vec<String> {
    let mut records: Vec<String> = [
        "--local=/example/",
        "--edns-packet-max=4096",
        "--local-ttl=600",
        // Several records of a name would change their order from answer to answer.
        "--host-record=web.example,192.0.2.10",
        "--host-record=six.example,2001:db8::10",
        "--host-record=old.example,192.0.2.11",
        "--cname=alias.example,web.example",
        "--txt-record=text.example,one,two words",
        "--srv-host=_headless._tcp.db.example,web.example,8080,1,5",
        "--mx-host=mail.example,web.example,10",
        "--ptr-record=10.2.0.192.in-addr.arpa,web.example",
        "--naptr-record=naptr.example,10,20,s,SIP+D2U,,web.example",
        "--caa-record=web.example,0,issue,ca.example",
        "--dns-rr=strange.example,65280,0123456789abcdef",
        "--host-record=web.corp.example,192.0.2.12",
    ]
    .map(str::to_owned)
    .into();
    // Two KiB: more than a plain datagram takes, and less than EDNS may.
    let long = "x".repeat(200);
    records.extend((0..10).map(|n| format!("--txt-record=big.example,{n}{long}")));
    records
}

fn serve(world: &World) -> Dnsmasq {
    let records = records();
    let records: Vec<&str> = records.iter().map(String::as_str).collect();
    world.pod("outside/resolver").serve_dns(&records).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn read(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).unwrap()
}

/// Asks over UDP and TCP, IPv4 and IPv6, and wants the same answer everywhere.
fn ask(pod: &Pod, name: &str, kind: RecordType) -> Message {
    let asked = query(name, kind, None).to_vec().unwrap();
    let mut said = Vec::new();
    for server in [ip(V4), ip(V6)] {
        said.push(read(&pod.dns_over_udp(server, &asked).unwrap()));
        let over_tcp = pod
            .dns_over_tcp(server, std::slice::from_ref(&asked))
            .unwrap();
        said.push(read(&over_tcp[0]));
    }
    let shown: BTreeSet<_> = said.iter().map(told).collect();
    assert_eq!(shown.len(), 1, "{name} {kind}: {shown:?}");
    said.remove(0)
}

fn told(message: &Message) -> Vec<String> {
    let mut lines: Vec<_> = message
        .answers
        .iter()
        .map(|record| format!("{} {} {}", record.name, record.record_type(), record.data))
        .collect();
    lines.push(message.response_code.to_string());
    lines
}

#[test]
fn names_of_the_mesh_are_answered_as_a_client_means_them() {
    let world = WORLD.with_others();
    let client = world.pod("mesh/client");
    let server = world.pod("mesh/server");
    let before = world.metrics("ztunnel-n1");
    let a = RecordType::A;
    let aaaa = RecordType::AAAA;
    let (v4, v6) = (server.ipv4().to_string(), server.ipv6().to_string());
    let table: &[(&str, RecordType, &[&str])] = &[
        ("server", a, &["server. A 10.96.0.10"]),
        ("SERVER.mesh", a, &["SERVER.mesh. A 10.96.0.10"]),
        ("server.mesh.svc", a, &["server.mesh.svc. A 10.96.0.10"]),
        (
            "server.mesh.svc.cluster.local",
            aaaa,
            &["server.mesh.svc.cluster.local. AAAA fd00:10:96::10"],
        ),
        ("ledger.other", a, &["ledger.other. A 10.96.0.11"]),
        (
            "ledger.other.svc.cluster.local",
            a,
            &["ledger.other.svc.cluster.local. A 10.96.0.11"],
        ),
        ("db", a, &[&format!("db. A {v4}")]),
        (
            "db.mesh.svc.cluster.local",
            aaaa,
            &[&format!("db.mesh.svc.cluster.local. AAAA {v6}")],
        ),
    ];
    for (name, kind, expected) in table {
        let answer = ask(client, name, *kind);
        let mut expected: Vec<String> = expected.iter().map(|line| (*line).to_owned()).collect();
        expected.push(ResponseCode::NoError.to_string());
        assert_eq!(told(&answer), expected, "{name} {kind}");
        assert!(answer.authoritative && answer.recursion_available);
        assert!(answer.answers.iter().all(|record| record.ttl == 30));
    }
    // The search domains of each pod are those of its own resolv.conf.
    let alias = "ledger.other.mesh.svc.cluster.local";
    let answer = told(&ask(world.pod("mesh/lost"), alias, a));
    assert_eq!(answer[0], format!("{alias}. CNAME ledger.other."));
    assert_eq!(answer[1], "ledger.other. A 10.96.0.11");
    let _app = server.serve_echo(8080);
    assert!(client.reaches("10.96.0.10:80"), "what was told is there");
    let labels = [
        ("request_query_type", "aaaa"),
        ("request_protocol", "tcp"),
        ("source_canonical_service", "client"),
    ];
    let requests =
        |metrics: &ambit_tests::metrics::Metrics| metrics.sum("istio_dns_requests_total", &labels);
    let after = world.metrics("ztunnel-n1");
    assert!(requests(&after) - requests(&before) >= 4.0, "{after:?}");
    let log = fs::read_to_string(world.programs().log("ztunnel-n1")).unwrap();
    let mut lines = log.lines().filter(|line| line.contains(r#""scope":"dns""#));
    let line = lines
        .find(|line| line.contains(r#""domain":"ledger.other""#))
        .unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["src.workload"], "client");
    assert_eq!(line["result"], "success");
    assert_eq!(line["endpoints"], 1);
}

/// The answer with every lifetime set to zero, and the longest of them.
fn without_lifetimes(bytes: &[u8]) -> (Vec<u8>, u32) {
    use ambit_dns::walk::{Header, kind, question_end, records};
    let mut bytes = bytes.to_vec();
    let header = Header::read(&bytes).unwrap();
    let start = question_end(&bytes).unwrap();
    let found: Vec<_> = records(&bytes, &header, start)
        .map(Result::unwrap)
        .collect();
    let records = found.iter().filter(|record| record.kind != kind::OPT);
    let mut longest = 0;
    for record in records {
        longest = longest.max(record.ttl);
        bytes[record.ttl_at()..record.ttl_at() + 4].fill(0);
    }
    (bytes, longest)
}

#[test]
fn whatever_else_is_asked_comes_back_as_the_server_says_it_byte_for_byte() {
    const SEED: u64 = 0x5eed;
    let world = WORLD.alone();
    let _dnsmasq = serve(&world);
    let (client, plain) = (world.pod("mesh/client"), world.pod("outside/plain"));
    let server = IpAddr::from(world.pod("outside/resolver").ipv4());
    let names = [
        "web.example",
        "WEB.Example",
        "old.example",
        "six.example",
        "alias.example",
        "text.example",
        "mail.example",
        "_headless._tcp.db.example",
        "naptr.example",
        "strange.example",
        "big.example",
        "none.example",
        "10.2.0.192.in-addr.arpa",
        "web.corp.example",
        "no-such.svc.cluster.local",
        "x",
        "_headless._tcp.server.mesh.svc.cluster.local",
        "server.mesh.svc.cluster.local",
    ];
    let kinds = [1, 28, 5, 2, 6, 12, 15, 16, 33, 35, 65, 255, 257, 65_280].map(RecordType::from);
    let mut random = SEED;
    let mut draw = |below: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % below
    };
    let mut truncated = 0;
    for turn in 0..400 {
        let (name, kind) = match turn % 20 {
            0 => ("big.example", RecordType::TXT),
            _ => (names[draw(names.len())], kinds[draw(kinds.len())]),
        };
        let address = matches!(kind, RecordType::A | RecordType::AAAA);
        if name == "server.mesh.svc.cluster.local" && address {
            continue;
        }
        let edns = [None, Some(512), Some(1232), Some(4096)][draw(4)];
        let mut asked = query(name, kind, edns);
        asked.metadata.id = u16::try_from(draw(65_536)).unwrap();
        asked.metadata.checking_disabled = draw(4) == 0;
        let asked = asked.to_vec().unwrap();
        let (ours, theirs) = if draw(3) == 0 {
            let one = [asked.clone()];
            let ours = client.dns_over_tcp(ip(V4), &one).unwrap().remove(0);
            (ours, plain.dns_over_tcp(server, &one).unwrap().remove(0))
        } else {
            let ours = client.dns_over_udp(ip(V4), &asked).unwrap();
            (ours, plain.dns_over_udp(server, &asked).unwrap())
        };
        let what = format!("turn {turn} of seed {SEED:#x}: {name} {kind} {edns:?}");
        if read(&theirs).truncation {
            truncated += 1;
            let ours = read(&ours);
            assert!(ours.truncation, "{what}");
            assert_eq!(ours.queries, read(&theirs).queries, "{what}");
            continue;
        }
        let ((ours, left), (theirs, whole)) =
            (without_lifetimes(&ours), without_lifetimes(&theirs));
        assert_eq!(ours, theirs, "{what}");
        assert!(left <= whole, "{what}: lives {left} s of {whole} s");
    }
    assert!(truncated > 0, "some did not fit");
}

#[test]
fn answers_are_kept_and_a_server_that_is_gone_is_a_failure_and_not_a_denial() {
    let world = WORLD.alone();
    let client = world.pod("mesh/client");
    let dnsmasq = serve(&world);
    let kept = query("old.example", RecordType::A, None).to_vec().unwrap();
    let denied = ask(client, "unknown.example", RecordType::A);
    assert_eq!(
        denied.response_code,
        ResponseCode::NXDomain,
        "as the server said"
    );
    let first = read(&client.dns_over_udp(ip(V4), &kept).unwrap());
    drop(dnsmasq);
    let second = read(&client.dns_over_udp(ip(V4), &kept).unwrap());
    assert_eq!(told(&first), told(&second), "from the cache");
    let failed = ask(client, "fresh.example", RecordType::A);
    assert_eq!(failed.response_code, ResponseCode::ServFail);
    assert_eq!(failed.queries.len(), 1);
    let still = ask(client, "server", RecordType::A);
    assert_eq!(still.answers.len(), 1, "the mesh's names need no server");
    // Another pod asks other servers, and never hears what was said to this one.
    let other = ask(world.pod("mesh/lost"), "old.example", RecordType::A);
    assert_eq!(other.response_code, ResponseCode::ServFail);
    let labels = [
        ("request_query_type", "a"),
        ("source_canonical_service", "client"),
    ];
    for name in [
        "istio_dns_upstream_requests_total",
        "istio_dns_upstream_failures_total",
        "istio_dns_upstream_request_duration_seconds_count",
    ] {
        assert!(
            world.metrics("ztunnel-n1").sum(name, &labels) > 0.0,
            "{name}"
        );
    }
}

#[test]
fn a_pod_without_a_file_of_servers_has_the_meshs_names_and_the_others_once_it_has_one() {
    let world = WORLD.alone();
    let _dnsmasq = serve(&world);
    let before = world.programs().process("ztunnel-n1");
    let pods = ["mesh/none", "mesh/folder", "mesh/noise"].map(|path| world.pod(path));
    let [none, folder, noise] = pods;
    assert!(!none.resolv_conf().exists());
    fs::create_dir(folder.resolv_conf()).unwrap();
    let mut garbage = vec![0; 100_000];
    Noise::new(3).fill(&mut garbage);
    garbage.splice(
        50..50,
        *b"\nnameserver\nsearch\nnameserver \xff\noptions ndots:\n",
    );
    fs::write(noise.resolv_conf(), garbage).unwrap();
    let mesh = query("server.mesh.svc.cluster.local", RecordType::A, None);
    let other = query("web.example", RecordType::A, None);
    let [mesh, other] = [mesh, other].map(|query| query.to_vec().unwrap());
    let told_of = |pod: &Pod, asked: &[u8]| read(&pod.dns_over_udp(ip(V4), asked).unwrap());
    // Whom the proxy itself would ask is not to be reached from here.
    std::thread::scope(|scope| {
        for pod in pods {
            scope.spawn(|| {
                assert_eq!(told_of(pod, &mesh).answers.len(), 1, "{}", pod.path());
                let failed = told_of(pod, &other);
                assert_eq!(failed.response_code, ResponseCode::ServFail);
            });
        }
    });
    fs::remove_dir(folder.resolv_conf()).unwrap();
    for pod in pods {
        let server = world.pod("outside/resolver").ipv4();
        pod.write_resolv_conf(&format!("nameserver {server}\n"));
    }
    for pod in pods {
        world.eventually("it asks the server that it is now given", || {
            let answer = pod.dns_over_udp(ip(V4), &other);
            answer.is_ok_and(|answer| read(&answer).answers.len() == 1)
        });
        fs::remove_file(pod.resolv_conf()).unwrap();
    }
    assert_eq!(world.programs().process("ztunnel-n1"), before);
}

#[test]
fn what_does_not_fit_a_datagram_comes_over_tcp_and_many_queries_share_a_stream() {
    let world = WORLD.alone();
    let _dnsmasq = serve(&world);
    let client = world.pod("mesh/client");
    let big = query("big.example", RecordType::TXT, None)
        .to_vec()
        .unwrap();
    for _ in 0..2 {
        let cut = client.dns_over_udp(ip(V4), &big).unwrap();
        assert!(
            cut.len() <= 512 && read(&cut).truncation,
            "{} bytes",
            cut.len()
        );
    }
    let whole = client.dns_over_tcp(ip(V4), &[big]).unwrap();
    assert_eq!(read(&whole[0]).answers.len(), 10);
    let many: Vec<Vec<u8>> = (0..100u16)
        .map(|n| {
            let name = if n % 2 == 0 {
                "server".to_owned()
            } else {
                format!("n{n}.example")
            };
            let mut message = query(&name, RecordType::A, None);
            message.metadata.id = n;
            message.to_vec().unwrap()
        })
        .collect();
    let answers = client.dns_over_tcp(ip(V6), &many).unwrap();
    let ids: BTreeSet<u16> = answers.iter().map(|answer| read(answer).id).collect();
    assert_eq!(ids.len(), 100, "each is answered once");
}

#[test]
fn what_is_no_query_is_told_so_and_harms_nobody() {
    let world = WORLD.with_others();
    let client = world.pod("mesh/client");
    let good = query("server", RecordType::A, None).to_vec().unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (bytes, code) in [
        (with(2, 0x80), ResponseCode::FormErr),
        (with(2, 0x28), ResponseCode::NotImp),
        (with(5, 9), ResponseCode::FormErr),
        (good[..20].to_vec(), ResponseCode::FormErr),
        (
            query("x", RecordType::AXFR, None).to_vec().unwrap(),
            ResponseCode::Refused,
        ),
    ] {
        let answer = client.dns_over_udp(ip(V4), &bytes).unwrap();
        assert_eq!(read(&answer).response_code, code, "{bytes:?}");
    }
    let answer = client.dns_over_udp(ip(V4), &good).unwrap();
    assert_eq!(read(&answer).answers.len(), 1);
}
