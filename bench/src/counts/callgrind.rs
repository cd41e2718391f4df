//! One path under valgrind's callgrind.

use std::fs;
use std::path::Path as File;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::paths::Path;

/// Operations before those that are counted: connections, caches and growing buffers reach their size in them.
const BEFORE: usize = 20;

/// Instructions that one operation of `path` executes. Callgrind's file of the longer run is left in `out`.
///
/// # Errors
///
/// No valgrind, or the path fails.
pub(crate) fn count(path: &Path, out: &File) -> Result<u64> {
    let file = out.join(format!("{}.callgrind", path.name.replace([' ', ','], "-")));
    let few = executed(path.name, BEFORE, &file)?;
    let many = executed(path.name, BEFORE + path.times, &file)?;
    let more = many
        .checked_sub(few)
        .context("more work executed fewer instructions")?;
    Ok(more / u64::try_from(path.times)?)
}

/// Instructions of the whole run. The child's environment is empty, so that it is the same wherever this is started.
fn executed(name: &str, times: usize, file: &File) -> Result<u64> {
    let mut out = std::ffi::OsString::from("--callgrind-out-file=");
    out.push(file);
    let valgrind = Command::new("valgrind")
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .args(["--tool=callgrind", "--quiet"])
        .arg(out)
        .arg(std::env::current_exe()?)
        .args(["take", name, &times.to_string()])
        .output()
        .context("valgrind")?;
    ensure!(
        valgrind.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&valgrind.stderr)
    );
    let text = fs::read_to_string(file).context("callgrind's file")?;
    match text.lines().find_map(|line| line.strip_prefix("totals: ")) {
        Some(total) => Ok(total.trim().parse()?),
        None => bail!("{name}: callgrind says no total"),
    }
}
