use std::path::PathBuf;

use crate::types::Success;
use crate::{Args, Attachment, ContainerId, Error, IfName, Netns, NetworkConfig, SpecVersion};

/// A plugin.
///
/// [`run`](crate::run) and [`dispatch`](crate::dispatch) call these after everything that the
/// specification demands of the environment and the configuration has been checked.
pub trait Plugin {
    /// Creates the interface [`Add::ifname`] in the container, or adjusts it.
    ///
    /// # Errors
    ///
    /// Whatever prevents it. Nothing should be left behind then; the runtime calls DEL all the
    /// same.
    fn add(&self, add: &Add) -> Result<Success, Error>;

    /// Undoes an ADD: removes what is there, and succeeds if nothing is.
    ///
    /// # Errors
    ///
    /// Whatever keeps resources from being released. The runtime calls again.
    fn del(&self, del: &Del) -> Result<(), Error>;

    /// Compares what there is with [`Check::prev_result`].
    ///
    /// # Errors
    ///
    /// What is missing or not as it should be.
    fn check(&self, check: &Check) -> Result<(), Error>;

    /// Tells whether an ADD could be serviced.
    ///
    /// # Errors
    ///
    /// [`Code::PLUGIN_NOT_AVAILABLE`](crate::Code::PLUGIN_NOT_AVAILABLE) and
    /// [`Code::LIMITED_CONNECTIVITY`](crate::Code::LIMITED_CONNECTIVITY).
    fn status(&self, status: &Status) -> Result<(), Error> {
        let _ = status;
        Ok(())
    }

    /// Removes what belongs to this network and to none of [`Gc::valid_attachments`].
    ///
    /// # Errors
    ///
    /// What could not be removed, after everything was tried.
    fn gc(&self, gc: &Gc) -> Result<(), Error> {
        let _ = gc;
        Ok(())
    }

    /// The versions of the specification that the plugin supports, oldest first.
    fn supported_versions(&self) -> &[SpecVersion] {
        SpecVersion::ALL
    }

    /// The keys of `CNI_ARGS` that the plugin understands. Others are refused then, unless the
    /// caller says `IgnoreUnknown`. `None`: any are accepted.
    fn known_args(&self) -> Option<&[&str]> {
        None
    }
}

/// The parameters of an ADD.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Add {
    /// The container's id.
    pub container_id: ContainerId,
    /// The container's isolation domain.
    pub netns: Netns,
    /// The name that the interface shall have in the container.
    pub ifname: IfName,
    /// What the caller added for this attachment.
    pub args: Args,
    /// Where other plugins are.
    pub path: Vec<PathBuf>,
    /// The network configuration.
    pub config: NetworkConfig,
    /// The result of the plugin before this one; the plugin must pass it on, with its changes.
    pub prev_result: Option<Success>,
}

/// The parameters of a DEL.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Del {
    /// The container's id.
    pub container_id: ContainerId,
    /// The container's isolation domain, if it is still there.
    pub netns: Option<Netns>,
    /// The interface's name in the container.
    pub ifname: IfName,
    /// What the caller added for this attachment.
    pub args: Args,
    /// Where other plugins are.
    pub path: Vec<PathBuf>,
    /// The network configuration.
    pub config: NetworkConfig,
    /// The result of the ADD, if the runtime still has it. One that cannot be read counts as lost,
    /// since it must not keep resources from being released;
    /// [`NetworkConfig::prev_result`] has the reason.
    pub prev_result: Option<Success>,
}

/// The parameters of a CHECK.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Check {
    /// The container's id.
    pub container_id: ContainerId,
    /// The container's isolation domain.
    pub netns: Netns,
    /// The interface's name in the container.
    pub ifname: IfName,
    /// What the caller added for this attachment.
    pub args: Args,
    /// Where other plugins are.
    pub path: Vec<PathBuf>,
    /// The network configuration.
    pub config: NetworkConfig,
    /// The result of the ADD.
    pub prev_result: Success,
}

/// The parameters of a STATUS.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// Where other plugins are.
    pub path: Vec<PathBuf>,
    /// The network configuration.
    pub config: NetworkConfig,
}

/// The parameters of a GC.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Gc {
    /// Where other plugins are.
    pub path: Vec<PathBuf>,
    /// The network configuration.
    pub config: NetworkConfig,
    /// The attachments of this network that must stay, sorted.
    pub valid_attachments: Vec<Attachment>,
}

impl Add {
    /// What identifies the attachment.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }
}

impl Del {
    /// What identifies the attachment.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }
}

impl Check {
    /// What identifies the attachment.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }
}
