//! Messages read and written.

use std::hint::black_box;
use std::time::Duration;

use ambit_dns::Transport;
use ambit_dns::answer::answer;
use ambit_dns::lookup::Scope;
use ambit_dns::query::Query;
use ambit_model::Identity;
use ambit_observe::access::{Direction, Endpoint, Record};
use ambit_observe::logging::LogFormat;
use ambit_wire::Authority;
use ambit_wire::hpack::Decoder;
use anyhow::{Context, Result, anyhow, ensure};

use super::mesh::{mesh, namespace, pick, random, service};

/// Queries for services by their whole names, from pods of their namespaces.
pub(crate) fn dns(times: usize) -> Result<()> {
    const SIZE: usize = 10_000;
    /// Different ones; each is asked again and again.
    const QUERIES: usize = 100;
    let view = mesh(SIZE, false)?;
    let mut queries = Vec::new();
    for turn in 0..QUERIES {
        let number = pick(turn, SIZE);
        let (key, _) = service(number)?;
        queries.push((namespace(number), asks(key.hostname.as_str())?));
    }
    let mut random = random();
    for (namespace, bytes) in queries.iter().cycle().take(times) {
        let scope = Scope {
            namespace,
            network: "",
            domain: "cluster.local",
            search: None,
            preferred_namespace: "",
            ipv6: true,
        };
        let query = Query::read(bytes).map_err(|fault| anyhow!("{fault:?}"))?;
        let answered = answer(&view, &scope, &query, Transport::Udp, &mut random);
        let answered = answered.context("an answer of the mesh")?;
        ensure!(answered.addresses == 1, "the service's address");
        black_box(&answered);
    }
    Ok(())
}

/// A query for the IPv4 addresses of a name (RFC 1035).
fn asks(name: &str) -> Result<Vec<u8>> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len())?);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    Ok(bytes)
}

/// The header block of a tunnel's first CONNECT with baggage, forwarding and trace, as an engine with Huffman's code and a table
/// of its own writes it; and that of the second, which differs in the client's port and in the trace.
const BLOCKS: [&str; 2] = [
    "4287bdab4e9c17b7ff418c0817134d2e15c2edc780f03f40858c734c398bfdeaf2172516a125b17a874960cd6c65b2a2\
     a4a8faeaf217a87495158c855ea1d2581139ebfaeaf21790b5d07f5496a4af50e92c1e0b1fd20b677310abd43a4b0782\
     c7f482d9dcc42afdcb620c7aa0ee1fa2507b645ec2cc63d5016d5885a9360e8583f44a0f6c8b8fb8cd40e335064fa8bd\
     9ea2c05b56216a4d83a1608f408794f6781d92164fa994f641fc840b89a69702e115c682265afe7ee73a130107625744\
     e7ad747722e4a2d424b62f41c83a3f40884d83216b1d85a93fa700166a395f14acb6ebb1b2d483706c90af89f9005015\
     a7597160025038e8c608c6f8051bab003f",
    "c2c1c07f00a994f641fc840b89a69702e115c682265cfe7ee73a130107625744e7ad747722e4a2d424b62f41c83a3f7f\
     00a7001600e575c6c2f85c248d33248f34d3c58c41091e03217c8b46e8e4723742e3e2032cb215801f",
];
/// What the fields of both come to, names and values.
const FIELD_BYTES: usize = 2 * 353;

/// Both blocks by a decoder of their own.
pub(crate) fn hpack(times: usize) -> Result<()> {
    /// More than either comes to.
    const LIMIT: usize = 16 * 1024;
    let blocks: Result<Vec<_>> = BLOCKS.iter().map(|text| from_hex(text)).collect();
    let blocks = blocks?;
    for _ in 0..times {
        let (mut decoder, mut bytes) = (Decoder::new(), 0);
        for block in &blocks {
            decoder.decode(block, LIMIT, |name, value| {
                bytes += black_box(name).len() + black_box(value).len();
            })?;
        }
        ensure!(bytes == FIELD_BYTES, "{bytes} bytes of fields");
    }
    Ok(())
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect()
}

/// The record of a connection through a tunnel, tab-separated.
pub(crate) fn record_text(times: usize) -> Result<()> {
    record(LogFormat::Plain, times)
}

/// The same as JSON.
pub(crate) fn record_json(times: usize) -> Result<()> {
    record(LogFormat::Json, times)
}

fn record(format: LogFormat, times: usize) -> Result<()> {
    let web = Identity::new("cluster.local", "shop", "web")?;
    let cart = Identity::new("cluster.local", "shop", "cart")?;
    let authority = Authority::parse(b"10.244.1.17:8080")?;
    let end = |workload, identity| Endpoint {
        workload,
        namespace: "shop",
        identity: Some(identity),
        cluster: "Kubernetes",
    };
    let record = Record {
        source_address: Some("10.244.0.12:41234".parse()?),
        source: end("web-5d9c7b8f6-x2x4z", &web),
        destination_address: Some("10.244.1.17:15008".parse()?),
        hbone_address: Some(&authority),
        service: "cart.shop.svc.cluster.local",
        destination: end("cart-7f6d9c5b4-q8r2t", &cart),
        direction: Direction::Outbound,
        bytes_sent: 1234,
        bytes_received: 56_789,
        duration: Duration::from_millis(321),
        error: None,
        trace: None,
    };
    for _ in 0..times {
        let line = black_box(&record).line(format);
        ensure!(line.len() > 300, "a whole line");
        black_box(&line);
    }
    Ok(())
}
