//! Gives back the pages of the program that only its start needed.
//!
//! # Theory of operation
//! A program's instructions and constants are read from its file as they are first touched, sixteen
//! pages at a time, and then stay mapped for as long as the process lives. Most of what a start
//! touches (reading settings, building TLS, the first conversation with a control plane) never runs
//! again, yet counts as this process' memory and is the last that the kernel takes when memory is
//! short. So once the start is over the mappings are emptied. What is in use comes back by itself,
//! for a fault of about a microsecond each sixteen pages; the kernel still has the pages in its
//! cache, now as the first to go.
//!
//! # Invariants
//! Only mappings of which the kernel says that no page was ever changed are touched: those read
//! back as they were. That leaves out what the loader relocated, and a text that a debugger or a
//! probe wrote to.

use std::fs;
use std::io;
use std::ops::Range;

use crate::Result;
use crate::error::Named;

/// Empties the mappings of this program's file that were never changed, and answers how many bytes
/// were resident in them. They fill again with what is used.
///
/// # Errors
/// The kernel does not show how memory is used (`/proc` is not mounted, or it was built without
/// `CONFIG_PROC_PAGE_MONITOR`).
pub fn release() -> Result<usize> {
    let program = fs::read_link("/proc/self/exe").named("readlink /proc/self/exe")?;
    let smaps = fs::read_to_string("/proc/self/smaps").named("read /proc/self/smaps")?;
    let unchanged = unchanged(&smaps, &program.to_string_lossy());
    let mut released = 0;
    for mapping in unchanged {
        if empty(&mapping.range).is_ok() {
            released += mapping.resident;
        }
    }
    Ok(released)
}

#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    range: Range<usize>,
    /// Bytes of it that are mapped.
    resident: usize,
}

/// The mappings of the file at `program` that cannot be written and of which no page was changed.
fn unchanged(smaps: &str, program: &str) -> Vec<Mapping> {
    let mut found = Vec::new();
    // One that was met and of which it is not yet said whether it was changed.
    let mut open: Option<Mapping> = None;
    for line in smaps.lines() {
        if let Some(head) = head(line) {
            let ours = head.private && !head.writable && head.path == program;
            open = ours.then_some(Mapping {
                range: head.range,
                resident: 0,
            });
        } else if let Some(mapping) = &mut open {
            if let Some(resident) = field(line, "Rss:") {
                mapping.resident = resident;
            } else if let Some(changed) = field(line, "Anonymous:") {
                found.extend(open.take().filter(|_| changed == 0));
            }
        }
    }
    found
}

struct Head<'a> {
    range: Range<usize>,
    writable: bool,
    private: bool,
    path: &'a str,
}

/// The first line of a mapping: `START-END PERMISSIONS OFFSET DEVICE INODE   PATH`.
fn head(line: &str) -> Option<Head<'_>> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    let (permissions, rest) = rest.split_once(' ')?;
    let mut rest = rest.splitn(4, ' ');
    Some(Head {
        range,
        writable: permissions.contains('w'),
        private: permissions.ends_with('p'),
        path: rest.nth(3).unwrap_or_default().trim_start(),
    })
}

/// The bytes in a line such as `Rss:    12 kB`.
fn field(line: &str, name: &str) -> Option<usize> {
    let kibibytes = line.strip_prefix(name)?.trim().strip_suffix(" kB")?;
    kibibytes.parse::<usize>().ok()?.checked_mul(1024)
}

#[expect(unsafe_code, reason = "takes pages away under running code")]
fn empty(range: &Range<usize>) -> io::Result<()> {
    let start = range.start as *mut libc::c_void;
    let advise = |advice| {
        // SAFETY: the range is a private mapping of the file that this program runs from, which
        // nothing unmaps while it runs, cannot be written, and has no page that differs from the
        // file, whose bytes cannot change while it is executed (ETXTBSY). Whoever reads the range
        // afterwards, this code among them, gets the same bytes from the file.
        unsafe { libc::madvise(start, range.len(), advice) }
    };
    // Tells that they are not needed soon; Linux before 5.4 has no name for that.
    advise(libc::MADV_COLD);
    match advise(libc::MADV_DONTNEED) {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Mapping, release, unchanged};

    const SMAPS: &str = "\
5000-7000 r--p 00000000 fd:00 42                           /bin/a program
Size:                  8 kB
Rss:                   4 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
7000-9000 r-xp 00002000 fd:00 42                           /bin/a program
Rss:                   8 kB
Anonymous:             0 kB
9000-a000 r--p 00004000 fd:00 42                           /bin/a program
Rss:                   4 kB
Anonymous:             4 kB
a000-b000 rw-p 00005000 fd:00 42                           /bin/a program
Rss:                   4 kB
Anonymous:             0 kB
b000-c000 r--s 00005000 fd:00 42                           /bin/a program
Anonymous:             0 kB
c000-d000 r--p 00000000 fd:00 43                           /lib/libc.so.6
Anonymous:             0 kB
d000-e000 r--p 00000000 00:00 0 
Anonymous:             0 kB
e000-f000 r--p 00000000 fd:00 42                           /bin/a program
Rss:                   4 kB
";

    #[test]
    fn picks_what_is_the_programs_and_was_never_changed() {
        let expected = [(0x5000..0x7000, 4096), (0x7000..0x9000, 8192)];
        let expected = expected.map(|(range, resident)| Mapping { range, resident });
        assert_eq!(unchanged(SMAPS, "/bin/a program"), expected);
        assert_eq!(unchanged(SMAPS, "/bin/a"), []);
        assert_eq!(unchanged("", "/bin/a program"), []);
        assert_eq!(unchanged("nonsense\n-\n5-6\nRss:\n", "/bin/a program"), []);
    }

    /// Bytes of the program's file that are mapped now.
    fn resident() -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let mappings = unchanged(&smaps, program.to_str().unwrap());
        mappings.iter().map(|mapping| mapping.resident).sum()
    }

    #[test]
    fn gives_back_what_is_not_used_and_the_program_goes_on() {
        // Other tests of this program run beside this one and bring theirs back, so it may take a
        // few looks; what this one uses is a small part of the program.
        let less = (0..100).any(|_| {
            let before = resident();
            let released = release().unwrap();
            assert!(released > 0);
            resident() < before.min(released)
        });
        assert!(less);
        // Each again: nothing was lost.
        picks_what_is_the_programs_and_was_never_changed();
        assert!(release().unwrap() > 0);
    }
}
