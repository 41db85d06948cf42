//! The command line: every command, option and help text.

pub mod node;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, value_parser};
use clap_complete::Shell;
use cluster_proto::{OsdId, PgId};

use self::node::{EtcdSettings, GatewayRun, MonitorRun, OsdRun};
use crate::size::Size;

/// Block storage for virtual machines, with standard front doors.
///
/// 'blockyard up' starts a whole cluster in one process and prints how to use it. A cluster of many machines has etcd for
/// its state ('blockyard init'), 'blockyard mon', 'blockyard osd run' and 'blockyard gateway'. All other commands talk to
/// a running cluster: the one in ./blockyard-data, unless --cluster says otherwise.
#[derive(Debug, Parser)]
#[command(name = "blockyard", version, propagate_version = true, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Args {
    /// The cluster: a data directory of 'blockyard up', or HOST:PORT[,HOST:PORT..] of its state store (etcd)
    /// [default: ./blockyard-data]
    #[arg(long, global = true, help_heading = GLOBAL, env = "BLOCKYARD_CLUSTER", value_name = "DIR|ENDPOINTS")]
    pub cluster: Option<String>,

    /// Settings of this machine, TOML or JSON; the command line and the environment win over them
    #[arg(long, global = true, help_heading = GLOBAL, env = "BLOCKYARD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// File with the cluster's key, if it has one ('blockyard key create' makes it)
    #[arg(long, global = true, help_heading = GLOBAL, env = "BLOCKYARD_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// Encrypt connections to OSDs; needs the cluster's key
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub encrypt: bool,

    /// How to be let in by the state store.
    #[command(flatten)]
    pub etcd: EtcdSettings,

    /// Print data as JSON. Field names are stable
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,

    /// Log more to stderr; repeat for still more (BLOCKYARD_LOG sets it in detail)
    #[arg(long, short, global = true, help_heading = GLOBAL, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Heading of the options that every command takes.
const GLOBAL: &str = "Options of every command";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong command line, or a wrong value on it
  3  the cluster cannot be reached
  4  no such pool, image, export or key
  5  exists already, or was changed by somebody else meanwhile
  6  would destroy data, and --yes was not given
  7  some data still depends on it

Sizes are bytes, or numbers with K, M, G, T or P (powers of 1024): 4096, 512M, 1.5T.
Images are named NAME (in pool 'default') or POOL/NAME.
Data goes to stdout, everything else to stderr. NO_COLOR turns colours off.";

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a whole cluster in this process: state store, monitor, OSDs and NBD server
    ///
    /// The first start creates everything in the data directory; later starts use what is there. Serves until Ctrl-C or
    /// SIGTERM. When ready it writes DIR/up.json with the endpoints and prints how to use them.
    Up(UpOptions),
    /// Create a cluster: gives an empty state store its identity
    ///
    /// Refused if the store holds a cluster already.
    Init(InitOptions),
    /// Run a monitor: it watches over the cluster and decides who serves what. Any number may run, one leads
    Mon(MonitorRun),
    /// Run a gateway: it serves the images to initiators. Any number may run
    Gateway(GatewayRun),
    /// Show how the cluster is: health, placement groups, OSDs, space, errors
    Status,
    /// Pools: redundancy and placement of images
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Placement groups: who holds and serves which part of a pool
    #[command(subcommand)]
    Pg(PgCommand),
    /// Show the space: of the whole cluster, of each pool and OSD
    Df,
    /// OSDs: the processes that store data, each on one device or file
    #[command(subcommand)]
    Osd(OsdCommand),
    /// Images: virtual disks
    #[command(subcommand)]
    Image(ImageCommand),
    /// Exports: more names under which images are served
    ///
    /// Every image is served under its own name (POOL/NAME outside of pool 'default') without an export.
    #[command(subcommand)]
    Export(ExportCommand),
    /// The cluster's key: whoever has it belongs to the cluster
    #[command(subcommand)]
    Key(KeyCommand),
    /// Raw configuration values, checked before they are written
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print completions for a shell
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write man pages into a directory
    Man {
        /// The directory; it is created if need be.
        dir: PathBuf,
    },
}

/// Options of `init`.
#[derive(Clone, Debug, ClapArgs)]
pub struct InitOptions {
    /// Identity of the cluster [default: a random one]
    #[arg(long, value_name = "UUID")]
    pub id: Option<cluster_proto::Uuid>,
}

/// How ports are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Ports {
    /// etcd 2379, NBD 10809, metrics 9899
    Default,
    /// Free ones; see DIR/up.json
    Auto,
}

/// Options of `up`.
#[derive(Clone, Debug, ClapArgs)]
pub struct UpOptions {
    /// Where everything is kept
    #[arg(long, default_value = "./blockyard-data", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Number of OSDs [default: 3, or as many as --ec needs]. Fixed at the first start
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub osds: Option<u32>,

    /// Size of each OSD's file, which is sparse [default: 8G]. Fixed at the first start
    #[arg(long, value_name = "SIZE")]
    pub osd_size: Option<Size>,

    /// Copies of each object in pool 'default' [default: 3, or as many as there are OSDs]. Fixed at the first start
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16), conflicts_with = "ec")]
    pub replicas: Option<u8>,

    /// Erasure-code pool 'default' with K data and M parity shards, instead of copies. Fixed at the first start
    #[arg(long, value_name = "K+M")]
    pub ec: Option<EcCode>,

    /// An image to create if it does not exist; repeat for more [default: demo=4G at the first start]
    #[arg(long, value_name = "NAME=SIZE", value_parser = parse_image)]
    pub image: Vec<NewImage>,

    /// How long OSDs and the gateway look for work before they sleep, in microseconds: lower latency for processor time
    #[arg(long, value_name = "US", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub busy_poll_us: u32,

    /// Which TCP ports to use on 127.0.0.1
    #[arg(long, value_enum, default_value_t = Ports::Default)]
    pub ports: Ports,
}

/// An image to create.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewImage {
    /// Its name.
    pub spec: ImageSpec,
    /// Bytes.
    pub size: u64,
}

fn parse_image(text: &str) -> Result<NewImage, String> {
    let (name, size) = text.rsplit_once('=').ok_or_else(|| format!("{text:?} has no '=': give NAME=SIZE"))?;
    let size: Size = size.parse()?;
    Ok(NewImage { spec: name.parse()?, size: size.0 })
}

/// Name of an image with its pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageSpec {
    /// The pool.
    pub pool: String,
    /// The image.
    pub name: String,
}

impl ImageSpec {
    /// Pool of images that are named without one.
    pub const DEFAULT_POOL: &str = "default";

    /// Name under which the image is exported by itself.
    pub fn export_name(&self) -> String {
        if self.pool == Self::DEFAULT_POOL { self.name.clone() } else { format!("{}/{}", self.pool, self.name) }
    }
}

impl std::str::FromStr for ImageSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pool, name) = text.split_once('/').unwrap_or((Self::DEFAULT_POOL, text));
        if pool.is_empty() || name.is_empty() {
            return Err(format!("{text:?} names no image: give NAME or POOL/NAME"));
        }
        Ok(Self { pool: pool.to_owned(), name: name.to_owned() })
    }
}

impl std::fmt::Display for ImageSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.export_name())
    }
}

/// Commands about pools.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// List the pools
    Ls,
    /// Create a pool
    Create(PoolCreate),
    /// Split or merge the placement groups of a pool, so that there are more or fewer of them
    ///
    /// Returns at once: the monitor splits them one after the other, while they serve, and then spreads them over the OSDs; or it moves
    /// those that become one to the same OSDs, and merges them. The number can be raised to a multiple, and lowered to a divisor.
    SetPgCount {
        /// Its name.
        name: String,
        /// Placement groups that it shall have.
        pg_count: u32,
        /// Only show what would move then
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove a pool without images, and its placement groups
    Rm {
        /// Its name.
        name: String,
        /// Do it
        #[arg(long)]
        yes: bool,
        /// Only show what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

/// Options of `pool create`.
#[derive(Clone, Debug, ClapArgs)]
pub struct PoolCreate {
    /// Its name.
    pub name: String,
    /// Copies of each object: 1 to 16 [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16), conflicts_with = "ec")]
    pub replicas: Option<u8>,
    /// Erasure-code with K data and M parity shards, instead of copies
    #[arg(long, value_name = "K+M")]
    pub ec: Option<EcCode>,
    /// Fewest copies or shards that may accept writes [default: more than half of the copies; one shard more than K]
    #[arg(long, value_name = "N")]
    pub min_size: Option<u8>,
    /// Placement groups; 'pool set-pg-count' changes their number later
    #[arg(long, value_name = "N", default_value_t = cluster_proto::limits::PG_COUNT_DEFAULT)]
    pub pg_count: u32,
    /// Size of a copy or data shard of the objects that images are cut into: a power of two from 128K to 4M; cannot be
    /// changed later [default: 1M; less for many data shards]
    #[arg(long, value_name = "SIZE")]
    pub block_size: Option<Size>,
    /// Changes that are durable when they are answered; clients keep the others until they flush. With none, drives with volatile caches
    /// are flushed when clients flush; with small, changes of more than 64K wait for that; cannot be changed later
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = CommitMode::All)]
    pub immediate_commit: CommitMode,
    /// Level of the placement tree of which each node gets one copy or shard at most: host, osd, or another [default: host]
    #[arg(long, value_name = "LEVEL")]
    pub failure_domain: Option<String>,
    /// Only OSDs in this node of the placement tree
    #[arg(long, value_name = "NODE")]
    pub root: Option<String>,
    /// Only OSDs with this tag; repeat for more
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Only check whether it can be created
    #[arg(long)]
    pub dry_run: bool,
}

/// What is durable when it is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum CommitMode {
    /// Nothing need be.
    None,
    /// Changes of up to 64 KiB.
    Small,
    /// Everything.
    All,
}

/// An erasure code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EcCode {
    /// Data shards.
    pub data: u8,
    /// Parity shards.
    pub parity: u8,
}

impl std::str::FromStr for EcCode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no erasure code: give K+M, like 4+2, with 32 shards in all at most");
        let (data, parity) = text.split_once('+').ok_or_else(wrong)?;
        let code = EcCode { data: data.parse().map_err(|_| wrong())?, parity: parity.parse().map_err(|_| wrong())? };
        let is_possible = code.data > 0 && code.parity > 0 && u32::from(code.data) + u32::from(code.parity) <= 32;
        if is_possible { Ok(code) } else { Err(wrong()) }
    }
}

/// Commands about placement groups.
#[derive(Debug, Subcommand)]
pub enum PgCommand {
    /// List the placement groups
    Ls {
        /// Only those of this pool
        #[arg(long, value_name = "POOL")]
        pool: Option<String>,
        /// Only those that this OSD serves or should serve
        #[arg(long, value_name = "ID")]
        osd: Option<OsdId>,
        /// Only those in this state, as the list shows it
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
    },
    /// Show everything that the cluster state knows of a placement group
    Describe {
        /// Pool number and index, like 1/17.
        #[arg(value_parser = parse_pg)]
        pg: PgId,
    },
    /// Compare what the members of a placement group have, and bring them together where they differ
    ///
    /// Returns at once: the OSD that leads the placement group does it in the background. Its statistics tell what it found.
    Scrub {
        /// Pool number and index, like 1/17.
        #[arg(value_parser = parse_pg)]
        pg: PgId,
        /// Also read and verify everything, and repair what is damaged
        #[arg(long)]
        deep: bool,
    },
    /// Read and verify everything in a placement group, and repair what is damaged: the same as 'scrub --deep'
    Repair {
        /// Pool number and index, like 1/17.
        #[arg(value_parser = parse_pg)]
        pg: PgId,
        /// Compute parity that does not fit its data anew, also where it is not known which of the two is wrong
        ///
        /// Of an erasure-coded pool. Clients read the data, so they see no difference; but if it was the data that was wrong, the parity that
        /// tells so is gone.
        #[arg(long)]
        parity_from_data: bool,
    },
}

fn parse_pg(text: &str) -> Result<PgId, String> {
    let wrong = || format!("{text:?} names no placement group: give POOL-NUMBER/INDEX, like 1/17");
    let (pool, index) = text.split_once('/').ok_or_else(wrong)?;
    Ok(PgId { pool: pool.parse().map_err(|_| wrong())?, index: index.parse().map_err(|_| wrong())? })
}

/// Commands about OSDs.
#[derive(Debug, Subcommand)]
pub enum OsdCommand {
    /// List the OSDs
    Ls,
    /// Make an OSD of a device or file: registers it in the cluster and makes an empty store
    ///
    /// Refuses a device that holds anything, unless --yes is given. Then run it with 'blockyard osd run'.
    Prepare(OsdPrepare),
    /// Run OSDs on prepared devices or files
    #[command(visible_alias = "start")]
    Run(OsdRun),
    /// Remove an OSD that does not run from the cluster
    ///
    /// Set its weight to 0 first and wait until its data is elsewhere: refused while placement groups need it.
    Rm {
        /// Its number.
        id: OsdId,
        /// Give it up although data depends on it: placement groups go on with what others have, writes that only it had are lost
        #[arg(long)]
        force: bool,
        /// Only show what depends on it
        #[arg(long)]
        dry_run: bool,
    },
    /// Change an OSD's share of the data
    Reweight(OsdReweight),
    /// Change an OSD's tags, which pools may ask for
    Tag {
        /// Its number.
        id: OsdId,
        /// Tags to add
        #[arg(long, value_name = "TAG", required_unless_present = "remove")]
        add: Vec<String>,
        /// Tags to remove
        #[arg(long, value_name = "TAG")]
        remove: Vec<String>,
    },
    /// Show the structures on the device of a stopped OSD
    Dump(OsdDump),
    /// Check the device of a stopped OSD: structures, and every checksum
    Check(OsdCheck),
}

/// Options of `osd prepare`.
#[derive(Clone, Debug, ClapArgs)]
pub struct OsdPrepare {
    /// The device or file.
    pub path: PathBuf,
    /// Size of the file, which is created, sparse, if it does not exist
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Size>,
    /// Divide the device into so many partitions, each for an OSD of its own (1 to 16): for drives that one thread does not use up
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=16))]
    #[arg(conflicts_with_all = ["id", "size"])]
    pub osds_per_device: u32,
    /// Number of the OSD [default: the next free one]
    #[arg(long, value_name = "N", value_parser = parse_osd)]
    pub id: Option<OsdId>,
    /// Its share of the data, relative to the other OSDs; of each, if the device is divided [default: its size in TiB]
    #[arg(long, value_name = "N")]
    pub weight: Option<f64>,
    /// Machine that it is in: copies go to different ones [default: this machine's name]
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// A tag, which pools may ask for; repeat for more
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Overwrite what is on the device or file
    #[arg(long)]
    pub yes: bool,
}

/// Options of `osd reweight`.
#[derive(Clone, Copy, Debug, ClapArgs)]
pub struct OsdReweight {
    /// Its number.
    pub id: OsdId,
    /// Factor that corrects its weight: 0 (takes all data off it) to 1
    #[arg(required_unless_present = "weight")]
    pub factor: Option<f64>,
    /// The weight itself, relative to the other OSDs; by custom its size in TiB
    #[arg(long, value_name = "N")]
    pub weight: Option<f64>,
    /// Only show what would move
    #[arg(long)]
    pub dry_run: bool,
}

fn parse_osd(text: &str) -> Result<OsdId, String> {
    match text.parse() {
        Ok(OsdId(0)) | Err(_) => Err(format!("{text:?} is no number of an OSD: they are numbered from 1")),
        Ok(id) => Ok(id),
    }
}

/// Options of `osd dump`.
#[derive(Debug, ClapArgs)]
pub struct OsdDump {
    /// The device or file.
    pub path: PathBuf,
    /// With all objects
    #[arg(long)]
    pub objects: bool,
    /// With the last N entries of the log
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub log: usize,
}

/// Options of `osd check`.
#[derive(Debug, ClapArgs)]
pub struct OsdCheck {
    /// The device or file.
    pub path: PathBuf,
    /// Structures only: do not read the data
    #[arg(long)]
    pub no_data: bool,
}

/// Commands about images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Create an image. It takes no space until it is written to
    Create {
        /// Its name.
        image: ImageSpec,
        /// Its size: a multiple of 512 bytes
        #[arg(long, value_name = "SIZE")]
        size: Size,
    },
    /// List the images
    Ls {
        /// Only those of this pool
        #[arg(long, value_name = "POOL")]
        pool: Option<String>,
    },
    /// Show an image
    Info {
        /// Its name.
        image: ImageSpec,
        /// Also find out how much of it holds data
        #[arg(long)]
        usage: bool,
    },
    /// Give an image another size. What lies behind a smaller size is deleted
    Resize {
        /// Its name.
        image: ImageSpec,
        /// The new size: a multiple of 512 bytes
        size: Size,
        /// Do it, although it makes the image smaller
        #[arg(long)]
        yes: bool,
    },
    /// Remove an image and its data. If interrupted, run it again
    Rm {
        /// Its name.
        image: ImageSpec,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// Copy a raw file into an image, which is created if it does not exist
    ///
    /// Zeroes and holes in the file take no space in the image. An existing image holds afterwards what the file holds,
    /// and zeroes behind its end.
    Import(ImportOptions),
    /// Copy an image to a raw file. Parts of the image that hold no data become holes
    Export(ExportOptions),
}

/// Options of `image import`.
#[derive(Debug, ClapArgs)]
pub struct ImportOptions {
    /// The raw file or device; '-' is the standard input.
    pub file: PathBuf,
    /// The image.
    pub image: ImageSpec,
    /// Size of a new image [default: that of the file, rounded up to 4096 bytes]
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Size>,
    /// Read both again afterwards and compare
    #[arg(long)]
    pub verify: bool,
    /// Overwrite an existing image
    #[arg(long)]
    pub yes: bool,
}

/// Options of `image export`.
#[derive(Debug, ClapArgs)]
pub struct ExportOptions {
    /// The image.
    pub image: ImageSpec,
    /// The file or device; '-' is the standard output.
    pub file: PathBuf,
    /// Overwrite an existing file or device
    #[arg(long)]
    pub yes: bool,
}

/// Commands about exports.
#[derive(Debug, Subcommand)]
pub enum ExportCommand {
    /// List the exports, those included that every image has by itself
    Ls,
    /// Serve an image under another name
    Add {
        /// The export's name.
        name: String,
        /// The image.
        #[arg(long, value_name = "IMAGE")]
        image: ImageSpec,
        /// Refuse writes through it
        #[arg(long)]
        read_only: bool,
        /// Text for people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// Stop serving an image under this name. The image stays
    Rm {
        /// The export's name.
        name: String,
    },
}

/// Commands about the cluster's key.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key in a new file that only its owner can read
    ///
    /// Give the same file to every daemon and client of the cluster with --key-file.
    Create {
        /// The file.
        path: PathBuf,
    },
    /// Show by which digits people can tell this key from others
    Fingerprint {
        /// The file.
        path: PathBuf,
    },
}

/// Commands about configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// List all settings of the cluster, with what differs from its default, and all other values
    Ls,
    /// Show a setting or value
    Get {
        /// Its name, like recovery-paused, or a key, like pool/1 or osd/2.
        key: String,
    },
    /// Change a setting or value
    ///
    /// Refuses values that break the schema, keys that it does not know, and changes that would unmap data. A setting is changed by itself, whatever
    /// others change at the same time.
    Set {
        /// Its name, like recovery-paused, or a key, like pool/1 or osd/2.
        key: String,
        /// The new value: of a setting like true, 85%, 10min, 7d, 100M; of a key JSON.
        value: String,
    },
    /// Give a setting of the cluster its default again
    Reset {
        /// Its name, like recovery-paused.
        key: String,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn images_may_name_their_pool() {
        assert_eq!("a".parse::<ImageSpec>().unwrap().to_string(), "a");
        assert_eq!("p/a/b".parse::<ImageSpec>().unwrap(), ImageSpec { pool: "p".into(), name: "a/b".into() });
        assert!("/a".parse::<ImageSpec>().is_err() && "p/".parse::<ImageSpec>().is_err());
        let image = parse_image("x=y=4G").unwrap();
        assert_eq!((image.spec.name.as_str(), image.size), ("x=y", 4 << 30));
    }
}
