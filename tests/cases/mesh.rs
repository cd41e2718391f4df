//! The world that most cases use: two nodes, a namespace in the mesh, another one, and one outside.

use ambit_tests::plan::{AMBIENT, Plan};
use ambit_tests::world::{Shared, started};

/// `mesh/client` and `mesh/near` on one node, `mesh/server` and `mesh/third` on the other;
/// `other/stranger` is in the mesh too, `outside/plain` and `outside/far` are not.
pub fn plan(name: &str) -> Plan {
    Plan::new(name)
        .namespace("mesh", &[AMBIENT])
        .namespace("other", &[AMBIENT])
        .namespace("outside", &[])
        .pod("mesh/client", 1)
        .pod("mesh/near", 1)
        .pod("mesh/server", 2)
        .pod("mesh/third", 2)
        .pod("other/stranger", 1)
        .pod("outside/plain", 1)
        .pod("outside/far", 2)
        .service("mesh/server", "server", &[("tcp", 80, 8080)])
}

/// For cases that only send traffic, each on ports of its own.
pub static MESH: Shared = Shared::new(|| started(plan("mesh")));
/// For cases that apply policies, one at a time.
pub static POLICED: Shared = Shared::new(|| started(plan("pol")));
