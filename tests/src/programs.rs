//! Starting and ending the real programs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

use crate::expect::eventually;

/// How to start a program again.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The full name of the namespace it runs in.
    pub netns: String,
    /// The program's file.
    pub program: PathBuf,
    /// Arguments.
    pub arguments: Vec<String>,
    /// Variables, in place of the test's own.
    pub environment: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Program {
    recipe: Recipe,
    child: Option<Child>,
}

/// Memory of a running program, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All pages that are in memory.
    pub resident: u64,
    /// Those of them that no other process has: the rest is shared, mostly the program itself.
    pub own: u64,
}

/// The programs of a world by name.
#[derive(Debug)]
pub struct Programs {
    logs: PathBuf,
    running: Mutex<BTreeMap<String, Program>>,
}

impl Programs {
    /// None yet; each will write its log to `logs/NAME.log`.
    #[must_use]
    pub fn new(logs: PathBuf) -> Self {
        Self {
            logs,
            running: Mutex::default(),
        }
    }

    /// Starts a program.
    ///
    /// # Errors
    ///
    /// Its file is missing.
    pub fn start(&self, name: &str, recipe: Recipe) -> Result<()> {
        let child = self.spawn(name, &recipe)?;
        self.running.lock().insert(
            name.to_owned(),
            Program {
                recipe,
                child: Some(child),
            },
        );
        Ok(())
    }

    /// Starts a program that was ended, as it was started before.
    ///
    /// # Errors
    ///
    /// There was none of this name.
    pub fn start_again(&self, name: &str) -> Result<()> {
        let mut running = self.running.lock();
        let program = running
            .get_mut(name)
            .with_context(|| format!("no program {name}"))?;
        if program.child.is_some() {
            bail!("{name} is running");
        }
        program.child = Some(self.spawn(name, &program.recipe)?);
        Ok(())
    }

    /// Changes a program's variables; they count from its next start.
    ///
    /// # Panics
    ///
    /// There is no such program.
    pub fn set(&self, name: &str, variable: &str, value: &str) {
        let mut running = self.running.lock();
        let program = running
            .get_mut(name)
            .unwrap_or_else(|| panic!("no program {name}"));
        program
            .recipe
            .environment
            .insert(variable.to_owned(), value.to_owned());
    }

    /// One of a program's variables, as its next start will have it.
    #[must_use]
    pub fn variable(&self, name: &str, variable: &str) -> Option<String> {
        let running = self.running.lock();
        running.get(name)?.recipe.environment.get(variable).cloned()
    }

    /// How a program was started.
    #[must_use]
    pub fn recipe(&self, name: &str) -> Option<Recipe> {
        let running = self.running.lock();
        running.get(name).map(|program| program.recipe.clone())
    }

    /// Ends a program with a signal and waits until it is gone.
    ///
    /// # Panics
    ///
    /// It is not running, or does not end within `bound`.
    pub fn end(&self, name: &str, signal: Signal, bound: Duration) -> ExitStatus {
        let mut child = {
            let mut running = self.running.lock();
            let program = running
                .get_mut(name)
                .unwrap_or_else(|| panic!("no program {name}"));
            program
                .child
                .take()
                .unwrap_or_else(|| panic!("{name} is not running"))
        };
        kill(pid(&child), signal).expect("the program is ours");
        eventually(bound, &format!("{name} ends after {signal}"), || {
            child.try_wait().expect("our child").ok_or("running")
        })
    }

    /// Sends a signal without waiting for anything.
    ///
    /// # Panics
    ///
    /// It is not running.
    pub fn signal(&self, name: &str, signal: Signal) {
        kill(self.process(name).expect("a running program"), signal).expect("it is ours");
    }

    /// The process of a running program.
    #[must_use]
    pub fn process(&self, name: &str) -> Option<Pid> {
        self.running.lock().get(name)?.child.as_ref().map(pid)
    }

    /// Whether the program runs; one that ended by itself does not.
    #[must_use]
    pub fn runs(&self, name: &str) -> bool {
        let mut running = self.running.lock();
        running
            .get_mut(name)
            .and_then(|program| program.child.as_mut())
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Names of all programs, running or not.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.running.lock().keys().cloned().collect()
    }

    /// Where a program writes what it has to say.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Memory in use by a running program, in bytes: resident, as the kernel counts it.
    #[must_use]
    pub fn resident(&self, name: &str) -> Option<u64> {
        let process = self.process(name)?;
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    }

    /// Memory of a running program, and how much of it is its own.
    #[must_use]
    pub fn memory(&self, name: &str) -> Option<Memory> {
        let process = self.process(name)?;
        let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
        let kib = |field: &str| {
            let line = text.lines().find(|line| line.starts_with(field))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        Some(Memory {
            resident: kib("Rss:")? * 1024,
            own: (kib("Private_Clean:")? + kib("Private_Dirty:")?) * 1024,
        })
    }

    /// CPU time a running program has used, user and system.
    #[must_use]
    pub fn cpu(&self, name: &str) -> Option<Duration> {
        let process = self.process(name)?;
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks: u64 =
            fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        // The kernel counts in hundredths of a second on every machine we run on (USER_HZ).
        Some(Duration::from_millis(ticks * 10))
    }

    fn spawn(&self, name: &str, recipe: &Recipe) -> Result<Child> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(name))?;
        // `ip netns exec` becomes the program, so the child's process id is the program's.
        Command::new("ip")
            .args(["netns", "exec", &recipe.netns])
            .arg(&recipe.program)
            .args(&recipe.arguments)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("RUST_BACKTRACE", "1")
            .envs(&recipe.environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{name}: {}", recipe.program.display()))
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        for program in self.running.get_mut().values_mut() {
            if let Some(mut child) = program.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process ids are small"))
}

/// Where the programs are: `$AMBIT_BIN`, or the newer of the workspace's two builds.
///
/// # Errors
///
/// They are not built.
pub fn folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("AMBIT_BIN") {
        return Ok(folder.into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    let built = ["debug", "release"].map(|profile| target.join(profile));
    let newest = built.into_iter().filter_map(|folder| {
        let time = fs::metadata(folder.join("ztunnel")).ok()?.modified().ok()?;
        Some((time, folder))
    });
    newest
        .max()
        .map(|(_, folder)| folder)
        .with_context(|| format!("no ztunnel in {}: cargo build --bins", target.display()))
}
