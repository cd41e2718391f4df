//! Arguments, settings, run.

use std::process::ExitCode;

use ambit_runtime::program::Program;
use ambit_ztunnel::app;
use ambit_ztunnel::config::env;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const HELP: &str = "\
The node proxy of the mesh.

Usage: ztunnel [proxy [ARGUMENT]...]   run (the default; further arguments are ignored)
       ztunnel version | --version     show the version
       ztunnel help | --help           show this text

Settings come from the environment, with Istio's names:
  XDS_ADDRESS, CA_ADDRESS          control plane and certificate authority, https://host:port
  XDS_ROOT_CA, CA_ROOT_CA          what proves them: file, PEM text, or SYSTEM
  SPIRE_ENABLED                    true: certificates come from the SPIRE agent of this machine
  SPIRE_ADMIN_ENDPOINT_SOCKET      its admin socket (unix:///run/spire/sockets/admin.sock)
  SPIFFE_ENDPOINT_SOCKET           its workload socket, for this proxy's own certificate
  AUTH_TOKEN                       what proves us: file or token
  CRL_PATH                         certificates taken back: a file of revocation lists, PEM or DER
  COMPLIANCE_POLICY                pqc: key exchange that withstands a quantum computer, alone
  PROXY_MODE                       dedicated: for one workload, in whose namespace it runs, without an agent
  PROXY_WORKLOAD_INFO              which: NAMESPACE/NAME/SERVICEACCOUNT
  NODE_NAME, CLUSTER_ID, NETWORK   where this proxy is
  POD_NAME, POD_NAMESPACE, SERVICE_ACCOUNT, INSTANCE_IP   who it is
  INPOD_UDS                        the agent's socket
  ZTUNNEL_WORKER_THREADS           data threads: N, P% of the CPUs, 0 for all
  ISTIO_META_DNS_CAPTURE           false: pods' DNS queries are not answered
  ISTIO_META_DNS_PROXY_ADDR        where they are, in each pod: localhost:PORT or ADDRESS:PORT
  CLUSTER_DOMAIN                   what services' names end in
  SAME_NODE_DIRECT                 false: tunnels also between pods of one node
  EARLY_DATA_ENABLED               false: a connection's first bytes wait until its tunnel's far end has accepted it
  SPLICE_ENABLED                   false: the kernel moves no bytes by itself, all are copied
  TERMINATION_GRACE_PERIOD_SECONDS, CONNECTION_TERMINATION_DEADLINE   time to end
  RUST_LOG, LOG_FORMAT             log filter; plain or json
  METRICS_MAX_LABEL_SETS           label sets that one family of metrics may have (8192)
  METRICS_IDLE_TIMEOUT             how long one that nothing uses is still shown (15m)
  and the others of Istio's ztunnel; a value that is wrong is refused by name.

Ports: admin 15000 (localhost), metrics 15020, readiness 15021; in each pod 15001, 15006,
15008, and 15053 on its loopback for DNS.
";

const PROGRAM: Program = Program {
    name: "ztunnel",
    version: env!("CARGO_PKG_VERSION"),
    help: HELP,
};

fn main() -> ExitCode {
    PROGRAM.main(|_ignored: &[String]| env::from_process(), app::run)
}
