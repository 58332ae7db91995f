# One of `services.castore-fs.virtiofs`.
{
  lib,
  name,
  pkgs,
  config,
  ...
}:

let
  inherit (lib) mkOption types;
in
{
  options = {
    store = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "disk";
      description = "The name of the store that is served; null for the only one.";
    };

    closure = mkOption {
      type = types.nullOr (types.listOf types.pathInStore);
      default = null;
      example = lib.literalExpression "[ guest.config.system.build.toplevel ]";
      description = ''
        Store paths of this machine that the guest gets, with all that they refer to: they are imported
        into the guest's store by {file}`castore-fs-closure-<name>.service`, after which the virtual machine is
        to be started, and the guest is shown these and no others. A switch to another closure
        adds to what a running guest is shown; the roots of former ones are removed when the host has booted
        again. The guest's kernel takes
        `regInfo=''${registration}/registration` on its command line, so that the guest's Nix knows them.
      '';
    };

    registration = mkOption {
      type = types.nullOr types.package;
      readOnly = true;
      default = if config.closure == null then null else pkgs.closureInfo { rootPaths = config.closure; };
      defaultText = lib.literalExpression "pkgs.closureInfo { rootPaths = closure; }";
      description = "What Nix has to know of the closure.";
    };

    isolated = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether a process of its own serves this guest: one that has given up every privilege and every
        file but its store's, so that a guest that takes it over has gained nothing. It opens the store
        by its URL, so the store has to have one, which is not in {file}`/home`, {file}`/root`,
        {file}`/run/user`, {file}`/tmp` or {file}`/var/tmp`; to share the daemon's cache with it, give it a store
        with the URL `grpc+unix:` of a socket on which the daemon serves the cache. Without this the
        daemon serves the guest, along with everything else, and has one cache for all.
      '';
    };

    socket = mkOption {
      type = types.str;
      default = "/run/castore-fs-virtiofs/${name}/socket";
      defaultText = lib.literalExpression ''"/run/castore-fs-virtiofs/\${name}/socket"'';
      description = "The socket that the virtual machine's vhost-user-fs device connects to.";
    };

    socketMode = mkOption {
      type = types.strMatching "0?[0-7]{3}";
      default = "0660";
      description = "The socket's permissions: write permission allows connecting.";
    };

    socketGroup = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "kvm";
      description = ''
        The socket's group; null for the daemon's. Where the daemon makes the socket, it has it from its
        directory, so the socket is to stay where it is by default.
      '';
    };

    tag = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "castore";
      description = "The tag by which the guest mounts, for monitors that ask the device for it.";
    };

    root = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "The directory to show as the mount root, instead of the list of the store's roots.";
    };

    listRoot = mkOption {
      type = types.nullOr (import ./listing.nix { inherit types; });
      default = null;
      description = ''
        What listing the mount root gives the guest: all roots (`true`, the default), EPERM (`false`), or
        an empty directory (`"empty"`).
      '';
    };

    warmup = mkOption {
      type = types.nullOr (
        types.enum [
          "learn"
          "off"
        ]
      );
      default = null;
      example = "learn";
      description = ''
        Whether what the guest reads first is recorded as an access profile, and prefetched at the next cold
        start of a guest or mount with the same root; null for `off`. An isolated guest has nowhere to keep it.
      '';
    };

    settings = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      description = "Further keys of this device in the daemon's file; not for one that is isolated.";
    };

    extraFlags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Further arguments of `castore-fs virtiofs`; only for one that is isolated.";
    };
  };
}
