//! Switches of the kernel that each network namespace has for itself.

/// Where they are. In a container that is not privileged the first is read-only; ours are given the host's as the second. Either shows
/// the namespace of whoever looks.
const PLACES: [&str; 2] = ["/proc/sys/net", "/host/proc/sys/net"];

/// Turns a switch on or off in the calling thread's namespace. Answers whether the kernel took it.
pub(crate) fn set(switch: &str, on: bool) -> bool {
    let value = if on { "1" } else { "0" };
    PLACES
        .iter()
        .any(|place| std::fs::write(format!("{place}/{switch}"), value).is_ok())
}
