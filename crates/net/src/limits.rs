//! Limits that the kernel sets for this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::Result;
use crate::error::Named;

/// Raises the number of descriptors this process may open to what it is allowed to ask for, and
/// returns that number. A proxy spends two descriptors on each connection, and the usual soft
/// limit of 1,024 exists only for programs that use `select`.
///
/// # Errors
///
/// The kernel refuses, which it does not for a value within the hard limit.
pub fn raise_nofile() -> Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).named("getrlimit RLIMIT_NOFILE")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).named("setrlimit RLIMIT_NOFILE")?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    #[test]
    fn raises_to_the_hard_limit_and_again_changes_nothing() {
        let first = super::raise_nofile().unwrap();
        assert_eq!(super::raise_nofile().unwrap(), first);
        let (soft, hard) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, hard), (first, first));
    }
}
