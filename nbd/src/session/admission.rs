//! Which requests go to the volume: everything a request can do wrong is found here, before a byte of its payload is
//! kept.

use super::Mode;
use super::export::Export;
use crate::status::Errno;
use crate::wire::flags::CommandFlags;
use crate::wire::request::{Command, Request};

/// Why a request is refused, for the reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) why: &'static str,
}

fn refuse_if(condition: bool, errno: Errno, why: &'static str) -> Result<(), Refusal> {
    if condition { Err(Refusal { errno, why }) } else { Ok(()) }
}

/// Refuses what the protocol or the export forbids.
pub(super) fn admit(request: &Request, export: &Export, mode: Mode, base_allocation: bool) -> Result<(), Refusal> {
    let is_status = request.command == Command::BlockStatus;
    refuse_if(export.removed, Errno::Shutdown, "the export was removed")?;
    refuse_if(request.command == Command::Unknown, Errno::Inval, "command is not known here")?;
    let allowed = allowed_flags(request.command, mode);
    refuse_if(!request.flags.is_subset(allowed), Errno::Inval, "flag does not apply to this command")?;
    refuse_if(is_status && !base_allocation, Errno::Inval, "no metadata context was negotiated")?;
    //= nbd-proto §Error values: "SHOULD return EPERM if it receives a write or trim request on a read-only export"
    refuse_if(export.read_only && is_write(request.command), Errno::Perm, "the export is read-only")?;
    admit_range(request, export)?;
    refuse_if(is_status && request.len == 0, Errno::Inval, "length is zero")?;
    admit_payload(request, export)
}

fn is_write(command: Command) -> bool {
    matches!(command, Command::Write | Command::Trim | Command::WriteZeroes)
}

//= nbd-proto §Command flags
fn allowed_flags(command: Command, mode: Mode) -> CommandFlags {
    type F = CommandFlags;
    let more = match command {
        Command::Read if mode >= Mode::Structured => F::DF,
        Command::Write if mode == Mode::Extended => F::PAYLOAD_LEN,
        Command::WriteZeroes => F::NO_HOLE | F::FAST_ZERO,
        Command::BlockStatus => F::REQ_ONE,
        _ => F::NONE,
    };
    F::FUA | more
}

fn admit_range(request: &Request, export: &Export) -> Result<(), Refusal> {
    //= nbd-proto §Request types, NBD_CMD_FLUSH: "length and offset are reserved, and MUST be set to all-zero"
    if request.command == Command::Flush {
        return refuse_if(request.offset != 0 || request.len != 0, Errno::Inval, "offset and length must be zero");
    }
    //= nbd-proto §Error values: "SHOULD return ENOSPC if it receives a write request including one or more sectors
    //= beyond the size of the device"
    let errno = match request.command {
        Command::Write | Command::WriteZeroes => Errno::NoSpc,
        _ => Errno::Inval,
    };
    refuse_if(request.end().is_none_or(|end| end > export.size), errno, "range is beyond the end of the export")
}

//= nbd-proto §Block size constraints
fn admit_payload(request: &Request, export: &Export) -> Result<(), Refusal> {
    let errno = match request.command {
        //= nbd-proto §Request types, NBD_CMD_READ: "MAY reject a client's request with the error EOVERFLOW"
        Command::Read if request.flags.has(CommandFlags::DF) => Errno::Overflow,
        Command::Read | Command::Write => Errno::Inval,
        _ => return Ok(()),
    };
    refuse_if(request.len > export.payload_len_max.into(), errno, "length is above the maximum block size")
}
