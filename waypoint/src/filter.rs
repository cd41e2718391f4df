//! What a request passes between its route and its upstream: a closed list, run in the order of the
//! control plane.

use std::sync::Arc;

use crate::rules::Rules;

pub mod headers;
pub mod redirect;
pub mod rewrite;

/// One step that a request passes.
#[derive(Debug, Clone)]
pub enum Filter {
    /// Authorization: refuses with 403.
    Rules(Arc<Rules>),
    /// Header changes of the chain (not of a route).
    Headers {
        /// Applied to the request when it passes.
        request: Vec<headers::Edit>,
        /// Applied to the response on its way back.
        response: Vec<headers::Edit>,
    },
}
