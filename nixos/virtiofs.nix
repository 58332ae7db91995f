# One of `services.castore-fs.virtiofs`.
{ lib, name, ... }:

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

    socket = mkOption {
      type = types.str;
      default = "/run/castore-fs-virtiofs/${name}.sock";
      defaultText = lib.literalExpression ''"/run/castore-fs-virtiofs/\${name}.sock"'';
      description = "The socket that the virtual machine's vhost-user-fs device connects to.";
    };

    socketMode = mkOption {
      type = types.strMatching "0?[0-7]{3}";
      default = "0660";
      description = "The socket's permissions: who may write to it may connect.";
    };

    socketGroup = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "kvm";
      description = "The socket's group; null for root's.";
    };

    root = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "The directory to show at the top, instead of the store's root nodes.";
    };

    listRoot = mkOption {
      type = types.bool;
      default = true;
      description = "Whether the guest can list the root.";
    };

    extraFlags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Further arguments of `castore-fs virtiofs`.";
    };
  };
}
