# Guests whose store paths are declared (`virtiofs.<name>.closure`): the host imports exactly these before it
# serves them, and a store of its own for the guest shows no others.
#
# Beside them the guest finds its registration, the root of `closureInfo`: what its Nix has to know of
# the paths (`regInfo=` on the kernel's command line; see ./guest.nix).
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.services.castore-fs;
  inherit (import ./render.nix { inherit lib; }) closureFile;

  daemon = "castore-fs.service";
  guests = lib.filterAttrs (_: guest: guest.closure != null) cfg.virtiofs;

  # What a store may be but is not (undeclared, without a URL) is an assertion's to tell.
  urlOf =
    guest:
    let
      names = lib.attrNames cfg.stores;
      name = if guest.store == null then lib.head (names ++ [ "default" ]) else guest.store;
    in
    toString (cfg.stores.${name}.url or "local:/var/lib/castore-fs");
in
{
  config = lib.mkIf (cfg.enable && guests != { }) {
    assertions = lib.mapAttrsToList (name: guest: {
      assertion = lib.hasPrefix "local:" (urlOf guest) && !guest.isolated;
      message = ''services.castore-fs: the guest "${name}" has a `closure`, which the host imports into a store with a `local:` URL and the daemon shows a part of. Give `virtiofs.${name}.store` such a store, and leave out `virtiofs.${name}.isolated`.'';
    }) guests;

    systemd.services = lib.mapAttrs' (
      name: guest:
      lib.nameValuePair "castore-fs-closure-${name}" {
        description = "Import the store paths of the virtual machine ${name}";
        wantedBy = [ "multi-user.target" ];
        # The daemon makes the store.
        wants = [ daemon ];
        after = [ daemon ];
        path = [
          cfg.package
          pkgs.coreutils
          pkgs.findutils
        ];
        script = lib.escapeShellArgs [
          pkgs.runtimeShell
          ./import-closure.sh
          (urlOf guest)
          guest.registration
          (closureFile name)
        ];
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          RuntimeDirectory = "castore-fs-closures";
          RuntimeDirectoryPreserve = true;
        }
        // lib.optionalAttrs (cfg.user != null) {
          User = cfg.user;
          Group = cfg.group;
        };
      }
    ) guests;
  };
}
