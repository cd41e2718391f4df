use std::net::{TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Netns, NetnsId};

/// A fresh namespace, kept alive only by its descriptor.
fn fresh() -> Netns {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("these tests make network namespaces: run them as root");
        Netns::current().unwrap()
    })
    .join()
    .unwrap()
}

fn here() -> NetnsId {
    Netns::current().unwrap().id()
}

#[test]
fn runs_inside_and_comes_back() {
    let home = here();
    let pod = fresh();
    let inside = pod.run(here).unwrap();
    assert_eq!(inside, pod.id());
    assert_ne!(inside, home);
    assert_eq!(here(), home);
}

#[test]
fn nested_visits_return_one_step_at_a_time() {
    let home = here();
    let (one, two) = (fresh(), fresh());
    one.run(|| {
        assert_eq!(two.run(here).unwrap(), two.id());
        assert_eq!(here(), one.id());
        assert_eq!(one.run(here).unwrap(), one.id());
    })
    .unwrap();
    assert_eq!(here(), home);
}

#[test]
fn a_panic_inside_still_comes_back() {
    let home = here();
    let pod = fresh();
    let outcome = catch_unwind(AssertUnwindSafe(|| pod.run(|| panic!("inside"))));
    assert!(outcome.is_err());
    assert_eq!(here(), home);
    assert_eq!(pod.run(here).unwrap(), pod.id());
}

#[test]
fn a_thread_that_moved_returns_to_its_new_home() {
    let (new_home, pod) = (fresh(), fresh());
    std::thread::spawn(move || {
        let _ = pod.run(here).unwrap();
        new_home.enter().unwrap();
        assert_eq!(pod.run(here).unwrap(), pod.id());
        assert_eq!(here(), new_home.id());
    })
    .join()
    .unwrap();
}

#[test]
fn a_socket_stays_in_the_namespace_it_was_made_in() {
    let pod = fresh();
    pod.run(bring_loopback_up).unwrap();
    let listener = pod
        .run(|| TcpListener::bind("127.0.0.1:0"))
        .unwrap()
        .unwrap();
    let address = listener.local_addr().unwrap();
    assert!(
        TcpStream::connect(address).is_err(),
        "the port is not open outside"
    );
    pod.run(|| TcpStream::connect(address)).unwrap().unwrap();
}

#[test]
fn refuses_a_descriptor_that_is_no_network_namespace() {
    let file = std::fs::File::open("/proc/self/ns/mnt").unwrap();
    assert!(Netns::from_fd(file.into()).is_err());
    assert!(Netns::open("/dev/null").is_err());
    assert!(Netns::open("/nonexistent").is_err());
}

#[test]
fn two_descriptors_of_one_namespace_have_one_id() {
    let pod = fresh();
    assert_eq!(pod.try_clone().unwrap().id(), pod.id());
    assert_ne!(fresh().id(), pod.id());
}

fn bring_loopback_up() {
    let done = std::process::Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(done.unwrap().success());
}
