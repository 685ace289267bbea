"""The stages of a build, in their order: adapt (stage I), readouts, align (stage II), prototypes, and build.

In: a project and a domain that it describes. Out: a folder under runs/, complete or absent; running a stage
again goes on where it stopped, or says that it is already there. `build` puts the results together as the
plug-in folder under domains/.
"""
