//! Arguments, settings, run.

use std::process::ExitCode;

use ambit_runtime::program::Program;
use ambit_waypoint::app;
use ambit_waypoint::config::env;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const HELP: &str = "\
The L7 proxy of the mesh.

Usage: waypoint [proxy waypoint [ARGUMENT]...]   run (the default)
       waypoint version | --version              show the version
       waypoint help | --help                    show this text

Of the arguments, `--domain`, `--serviceCluster` and `--log_as_json` count; Istio's others are ignored.

Settings come from the environment, with Istio's names:
  PROXY_CONFIG                     JSON; its discoveryAddress is the control plane
  XDS_ADDRESS, CA_ADDR             control plane and certificate authority, https://host:port
  XDS_ROOT_CA, CA_ROOT_CA          what proves them: file, PEM text, or SYSTEM
  AUTH_TOKEN                       what proves us: file or token
  POD_NAME, POD_NAMESPACE, SERVICE_ACCOUNT, INSTANCE_IP, TRUST_DOMAIN   who it is
  ISTIO_META_*, ISTIO_METAJSON_*   node metadata for the control plane
  WAYPOINT_WORKER_THREADS          data threads; one for each CPU if not given
  TERMINATION_DRAIN_DURATION       time for requests to end
  RUST_LOG, LOG_FORMAT             log filter; plain or json
  METRICS_MAX_LABEL_SETS           label sets that one family of metrics may have (8192)
  METRICS_IDLE_TIMEOUT             how long one that nothing uses is still shown (15m)
A value that is wrong is refused by name. Everything else comes from the control plane.

Ports: tunnels 15008, admin 15000 (localhost), metrics 15020, readiness 15021.
";

const PROGRAM: Program = Program {
    name: "waypoint",
    version: env!("CARGO_PKG_VERSION"),
    help: HELP,
};

fn main() -> ExitCode {
    PROGRAM.main(env::from_process, app::run)
}
