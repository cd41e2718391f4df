//! One run of one world: its name, its folder, and its removal whatever happens.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

/// Names of all our namespaces begin with this, then the process id.
const PREFIX: &str = "ambit-t";
/// Where namespaces appear by name.
const NAMESPACES: &str = "/run/netns";

/// Removes what a run made: its processes, its namespaces, its folder. `$1` is the run's prefix.
const REMOVE: &str = r#"
for path in /run/netns/"$1"-*; do
  [ -e "$path" ] || continue
  name=${path##*/}
  ip netns pids "$name" 2>/dev/null | xargs -r kill -KILL 2>/dev/null
  ip netns delete "$name" 2>/dev/null
  rm -rf "/etc/netns/$name"
done
rm -rf "/tmp/$1" "/tmp/$1"-*
"#;

/// A name that no other run uses, a folder of that name, and the promise to remove all of it.
#[derive(Debug)]
pub struct Run {
    prefix: String,
    folder: PathBuf,
    remover: Child,
}

impl Run {
    /// Begins a run. `world` becomes part of the names, for people who look.
    ///
    /// # Errors
    ///
    /// Not root, or the system has no room.
    pub fn begin(world: &str) -> Result<Self> {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        static LEFTOVERS: Once = Once::new();
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the namespace world makes network namespaces: run it as root"
        );
        LEFTOVERS.call_once(remove_leftovers);
        ambit_net::limits::raise_nofile()?;
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}-{sequence}{world}", std::process::id());
        let folder = PathBuf::from("/tmp").join(&prefix);
        fs::create_dir_all(folder.join("log")).context("the run's folder")?;
        // Waits for the end of its input, which the kernel gives it when this process is gone,
        // however it went. A session of its own, so that Ctrl-C at the terminal passes it by.
        let remover = Command::new("setsid")
            .args([
                "sh",
                "-c",
                &format!("cat >/dev/null\n{REMOVE}"),
                "sh",
                &prefix,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("the remover")?;
        Ok(Self {
            prefix,
            folder,
            remover,
        })
    }

    /// The full name of a namespace of this run.
    #[must_use]
    pub fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// The path of a namespace of this run.
    #[must_use]
    pub fn namespace_path(&self, name: &str) -> PathBuf {
        Path::new(NAMESPACES).join(self.namespace(name))
    }

    /// The run's folder: manifests, keys, logs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        drop(self.remover.stdin.take());
        if let Err(error) = self.remover.wait() {
            let _ = writeln!(
                std::io::stderr(),
                "{} was not removed: {error}",
                self.prefix
            );
        }
    }
}

/// Removes what runs left whose process and remover both were killed.
fn remove_leftovers() {
    let names = [NAMESPACES, "/tmp"]
        .into_iter()
        .filter_map(|folder| fs::read_dir(folder).ok());
    for entry in names.flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let process: String = rest.chars().take_while(char::is_ascii_digit).collect();
        if process.is_empty() || Path::new("/proc").join(&process).exists() {
            continue;
        }
        let prefix = format!("{PREFIX}{process}");
        // Without the sequence it covers all worlds of that process.
        let _ = Command::new("sh")
            .args(["-c", REMOVE, "sh", &prefix])
            .status();
    }
}
