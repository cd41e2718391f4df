//! Which servers a pod asks, and which search domains its resolver appends: from files of resolv.conf's form.
//!
//! A pod's own file counts where its namespace gives it: `ip netns` shows the programs of namespace NAME the file
//! `/etc/netns/NAME/resolv.conf`. Elsewhere this proxy's own file says whom to ask, and the search domains are those that
//! Kubernetes gives a pod.

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use ambit_net::netns::NetnsId;
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::time::Instant;

/// This proxy's own file.
pub const OWN: &str = "/etc/resolv.conf";
/// Where namespaces have names.
const NAMES: &str = "/run/netns";
/// Where files of named namespaces are.
const FILES: &str = "/etc/netns";

/// How often a file is read again, at most. A change of servers is seldom and not urgent.
const AGAIN: Duration = Duration::from_secs(5);
/// Longest file read: three servers and 256 characters of search domains need a tenth of it.
const LONGEST: u64 = 16 * 1024;
/// Servers asked, and search domains tried, at most: as many as the C library asks and Kubernetes permits.
const SERVERS: usize = 3;
const DOMAINS: usize = 32;

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conf {
    /// Servers in the order in which they are asked.
    pub servers: Vec<IpAddr>,
    /// Search domains in lower case, without a last dot.
    pub search: Vec<String>,
}

impl Conf {
    /// Reads a file's text. What it does not understand is left out.
    #[must_use]
    pub fn read(text: &str) -> Self {
        // The only error is that it names no server, and then it is as good as no file.
        let Ok((parsed, _)) = parse_resolv_conf(text) else {
            return Self::default();
        };
        let servers = parsed.name_servers().iter().map(|server| server.ip);
        let domains = parsed.search().iter().map(|name| {
            let text = name.to_ascii().to_ascii_lowercase();
            text.trim_end_matches('.').to_owned()
        });
        Self {
            servers: servers.take(SERVERS).collect(),
            search: domains
                .filter(|domain| !domain.is_empty())
                .take(DOMAINS)
                .collect(),
        }
    }

    /// The cluster's domain, if a search domain shows it: of `svc.DOMAIN`, which Kubernetes gives every pod.
    #[must_use]
    pub fn cluster_domain(&self) -> Option<&str> {
        self.search
            .iter()
            .find_map(|domain| domain.strip_prefix("svc."))
    }
}

/// What this proxy itself was told, read once.
#[must_use]
pub fn own() -> Conf {
    read(Path::new(OWN))
        .map(|text| Conf::read(&text))
        .unwrap_or_default()
}

/// A file that may change.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    looked: Cell<Option<Instant>>,
    text: RefCell<String>,
    conf: RefCell<Rc<Conf>>,
}

impl Watched {
    /// A file; it is read when it is first asked for.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            looked: Cell::new(None),
            text: RefCell::default(),
            conf: RefCell::default(),
        }
    }

    /// What it says; the same object for as long as it says the same. A file that is not there says nothing.
    pub fn now(&self) -> Rc<Conf> {
        let due = self.looked.get().is_none_or(|at| at.elapsed() >= AGAIN);
        if due {
            self.looked.set(Some(Instant::now()));
            let text = read(&self.path).unwrap_or_default();
            if *self.text.borrow() != text {
                *self.conf.borrow_mut() = Rc::new(Conf::read(&text));
                *self.text.borrow_mut() = text;
            }
        }
        Rc::clone(&self.conf.borrow())
    }
}

/// A small local file: reading it takes microseconds, and no other thread.
fn read(path: &Path) -> std::io::Result<String> {
    let mut text = Vec::new();
    std::fs::File::open(path)?
        .take(LONGEST)
        .read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The file that the namespace's name gives its programs, if the namespace has a name here.
#[must_use]
pub fn of_namespace(id: NetnsId) -> Option<Watched> {
    named(Path::new(NAMES), Path::new(FILES), id)
}

fn named(names: &Path, files: &Path, id: NetnsId) -> Option<Watched> {
    let entries = std::fs::read_dir(names).ok()?.flatten();
    let name = entries.map(|entry| entry.file_name()).find(|name| {
        let found = std::fs::metadata(names.join(name));
        found.is_ok_and(|found| (found.dev(), found.ino()) == (id.device, id.inode))
    })?;
    Some(Watched::new(files.join(name).join("resolv.conf")))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::rc::Rc;
    use std::time::Duration;

    use ambit_net::netns::NetnsId;

    use super::{Conf, Watched, named};

    #[test]
    fn reads_servers_and_search_domains_and_leaves_out_the_rest() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("", &[], &[]),
            ("nameserver 10.96.0.10\n", &["10.96.0.10"], &[]),
            (
                "# kubelet\nsearch Shop.svc.cluster.local svc.cluster.local. cluster.local\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n",
                &["10.96.0.10", "fd00::a"],
                &[
                    "shop.svc.cluster.local",
                    "svc.cluster.local",
                    "cluster.local",
                ],
            ),
            (
                "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\nnameserver 4.4.4.4\n",
                &["1.1.1.1", "2.2.2.2", "3.3.3.3"],
                &[],
            ),
            (
                "nonsense\nnameserver here\nnameserver 10.0.0.1\n",
                &["10.0.0.1"],
                &[],
            ),
            (
                "search a\nsearch b c\nnameserver 10.0.0.1\n",
                &["10.0.0.1"],
                &["b", "c"],
            ),
        ];
        for (text, servers, search) in table {
            let conf = Conf::read(text);
            let found: Vec<String> = conf.servers.iter().map(ToString::to_string).collect();
            assert_eq!(found, *servers, "{text}");
            assert_eq!(conf.search, *search, "{text}");
        }
        let conf = Conf::read("search a.svc.corp svc.corp corp\nnameserver 10.0.0.1\n");
        assert_eq!(conf.cluster_domain(), Some("corp"));
        assert_eq!(Conf::default().cluster_domain(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_changes_is_read_again_and_the_same_text_is_the_same_object() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let watched = Watched::new(path.clone());
        assert_eq!(*watched.now(), Conf::default(), "not there yet");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        assert_eq!(
            *watched.now(),
            Conf::default(),
            "not looked at all the time"
        );
        tokio::time::advance(Duration::from_secs(5)).await;
        let first = watched.now();
        assert_eq!(first.servers.len(), 1);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(Rc::ptr_eq(&first, &watched.now()));
        fs::remove_file(&path).unwrap();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(*watched.now(), Conf::default());
    }

    #[test]
    fn a_namespace_with_a_name_has_the_file_of_that_name() {
        let folder = tempfile::tempdir().unwrap();
        let (names, files) = (folder.path().join("names"), folder.path().join("files"));
        for name in ["a", "b"] {
            fs::create_dir_all(files.join(name)).unwrap();
            fs::create_dir_all(&names).unwrap();
            fs::write(names.join(name), "").unwrap();
        }
        fs::write(files.join("b/resolv.conf"), "nameserver 10.0.0.2\n").unwrap();
        let of = |name: &str| {
            let found = fs::metadata(names.join(name)).unwrap();
            NetnsId {
                device: found.dev(),
                inode: found.ino(),
            }
        };
        let b = named(&names, &files, of("b")).unwrap();
        assert_eq!(b.now().servers.len(), 1);
        let a = named(&names, &files, of("a")).unwrap();
        assert_eq!(*a.now(), Conf::default(), "named, but without a file");
        let unknown = NetnsId {
            device: 0,
            inode: 0,
        };
        assert!(named(&names, &files, unknown).is_none());
        assert!(named(&folder.path().join("none"), &files, unknown).is_none());
    }
}
